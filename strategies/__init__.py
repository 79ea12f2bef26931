"""Inference-time strategies, one file each; a strategy is loaded by its kind (``Strategy.load("best_of_n")``)."""
