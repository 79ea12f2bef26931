"""The wordings that strategies and verifiers use by default, and that the shipped model is trained on."""

STEP_BY_STEP = "Think step by step."
ANSWER_ONLY = "Give only the answer."
STEP_QUESTION = "Is the last step right? Answer yes or no."
RESTART_QUESTION = "Would you do better if you started over? Answer yes or no."
