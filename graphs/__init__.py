"""Strategies in LangGraph: as nodes of your own graphs, and as runs that are kept and resumed."""

from stratagem.graphs.agents import AgentState, agent_graph
from stratagem.graphs.nodes import StrategyNode, node
from stratagem.graphs.pictures import picture
from stratagem.graphs.runner import Runner, RunState
from stratagem.graphs.stores import Store

__all__ = ["AgentState", "RunState", "Runner", "Store", "StrategyNode", "agent_graph", "node", "picture"]
