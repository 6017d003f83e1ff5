"""`e2llm chaos`: faults while a load runs, and whether every answer is what it would have been."""
