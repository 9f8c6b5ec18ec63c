"""An OpenAI-compatible server of a model that can be impaired (docs/server.md)."""
