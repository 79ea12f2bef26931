"""Test doubles and laws, for this package's tests and for anybody who adds a part to it.

``toy``: an exactly enumerable language model; ``laws``: batteries that a strategy, verifier or backend gets by one
line; ``loops``: event loops with counted steps and virtual time; ``faults``: backends that fail on purpose;
``server``: a simulated OpenAI-compatible server.
"""
