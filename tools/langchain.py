"""LangChain's tools as ours, and ours as LangChain's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from stratagem.core.errors import ConfigurationError
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Effect, Failed, Tool

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool, StructuredTool


def from_langchain(
    tool: BaseTool, *, effect: Effect = "destructive", timeout: float = 30.0, secrets: Sequence[str] = ()
) -> Tool:
    """A LangChain tool as one of ours. What it raises is a failure that the model reads. Other limits are set by
    :meth:`stratagem.tools.tool.Tool.replace`.

    Args:
        effect: what a second call does; LangChain's tools do not say, so the most careful is the default.
        secrets: values to mask in results, failures and traces.

    Raises:
        ConfigurationError: it has no schema of its arguments.
    """
    try:
        schema = tool.tool_call_schema
        plain = schema if isinstance(schema, dict) else TypeAdapter(schema).json_schema()
    except (AttributeError, TypeError) as error:
        raise ConfigurationError(f"{tool!r} is no tool of LangChain's: {error}.") from None

    def blocking(**arguments: Any) -> Any:
        return tool.invoke(arguments)

    async def function(**arguments: Any) -> Any:
        return await tool.ainvoke(arguments)

    chosen = blocking if _blocks(tool) else function
    return schema_tool(
        tool.name, tool.description, plain, chosen, effect=effect, timeout=timeout, secrets=secrets
    )


def _blocks(tool: BaseTool) -> bool:
    """Whether its ``ainvoke`` would but call ``invoke`` in the event loop's pool, where calls that hang hold up
    others."""
    from langchain_core import tools as theirs

    if type(tool).ainvoke is theirs.BaseTool.ainvoke:
        return type(tool)._arun is theirs.BaseTool._arun
    known = type(tool).ainvoke in (theirs.StructuredTool.ainvoke, theirs.Tool.ainvoke)
    return known and getattr(tool, "coroutine", None) is None


def to_langchain(tool: Tool) -> StructuredTool:
    """One of our tools as LangChain's, as ``ToolNode`` takes it: with its limits, and failures as
    ``ToolException``, which LangChain shows to the model."""
    from langchain_core.tools import StructuredTool, ToolException

    async def call(**arguments: Any) -> Any:
        outcome = await tool(**arguments)
        if isinstance(outcome, Failed):
            raise ToolException(outcome.message)
        return outcome.data

    return StructuredTool(
        name=tool.name,
        description=tool.description,
        args_schema=tool.parameters,
        coroutine=call,
        handle_tool_error=True,
    )
