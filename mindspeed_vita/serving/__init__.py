"""The OpenAI-compatible server over the inference room: schema, media rules and limits."""
