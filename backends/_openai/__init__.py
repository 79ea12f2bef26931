"""Parts of the OpenAI-compatible backend; the public door is `stratagem.backends.openai`."""
