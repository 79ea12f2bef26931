"""The wordings that strategies and verifiers use by default, and that the shipped model is trained on."""

STEP_BY_STEP = "Think step by step."
ANSWER_ONLY = "Give only the answer."
STEP_QUESTION = "Is the last step right? Answer yes or no."
RESTART_QUESTION = "Would you do better if you started over? Answer yes or no."
DIVIDE = """\
Find the answer with tools. Write all calls that you can make now, one a line: name = tool(arguments). \
A call may take what others give, by their names. When you know the answer, write: The answer is ..."""
FALLBACKS = """\
Behind a call may stand what is done if it fails: name = tool(arguments) else tool(other arguments) else 0. \
A value is taken as the result; skip leaves out what needs it, stop ends the plan, ask lets you write another."""
ONE_CALL = """\
Find the answer with tools. Write one call at a time: name = tool(arguments). \
A call may take what others gave, by their names. When you know the answer, write: The answer is ..."""
NATIVE = """\
Find the answer with the tools. Make all calls that do not need each other's results at once. \
When you know the answer, write: The answer is ..."""
REACT = """\
Find the answer with tools. \
Write a thought and then one call, each on a line: Thought: ... Action: tool(arguments). \
When you know the answer, write: The answer is ..."""
