"""`e2llm bench serve`: a load of streamed requests on any OpenAI-compatible server."""
