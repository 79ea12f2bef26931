"""Parts of the simulated OpenAI-compatible server; the public door is `stratagem.testing.server`."""
