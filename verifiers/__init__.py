"""Verifiers: what says how good a candidate is; loaded by kind (``Verifier.load("math")``)."""
