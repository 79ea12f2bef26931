"""Sandboxes for Python that a model wrote: an interpreter of a subset, and CPython in a confined process."""

from stratagem.tools.sandbox.monty import MontySandbox
from stratagem.tools.sandbox.process import ProcessSandbox
from stratagem.tools.sandbox.python_tool import python_tool

__all__ = ["MontySandbox", "ProcessSandbox", "python_tool"]
