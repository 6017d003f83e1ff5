"""What a fog would do with a workload, and after a change: production's plans, simulated."""
