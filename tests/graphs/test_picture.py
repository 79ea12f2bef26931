import sys
from itertools import combinations
from pathlib import Path
from typing import Any, TypedDict
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.graph import END, START, StateGraph

import stratagem as sg
from stratagem.core.errors import ConfigurationError, MissingExtraError, StoreError
from stratagem.core.protocols import Verifier
from stratagem.graphs import node, picture
from stratagem.graphs._layout import lay_out
from stratagem.strategies.best_of_n import BestOfN
from stratagem.strategies.self_consistency import SelfConsistency
from stratagem.testing.language import Distribution
from stratagem.testing.toy import ToyModel
from stratagem.tools.dag import Plan
from stratagem.tools.notation import parse

JUDGED = BestOfN(n=8, verifier=Verifier.load({"kind": "all", "parts": ["math", "judge"]}))


class State(TypedDict, total=False):
    question: str
    answer: dict[str, Any]


def routed() -> StateGraph[State]:
    builder = StateGraph(State)
    builder.add_node("route", lambda state: state)
    builder.add_node("easy", node(SelfConsistency(n=4)))
    builder.add_node(node(JUDGED))
    builder.add_node("check", lambda state: state)
    builder.add_edge(START, "route")
    builder.add_conditional_edges(
        "route", lambda _: "a", {'"short" <b>': "easy", "hard": "best_of_n", "none": END}
    )
    builder.add_edge(["easy", "best_of_n"], "check")
    builder.add_conditional_edges("check", lambda _: "a", {"wrong": "route", "again": "check", "right": END})
    return builder


def test_the_text_of_a_strategy_names_its_parameters_and_parts() -> None:
    text = picture(JUDGED)
    assert text.startswith("flowchart TD\n")
    for part in ("<b>best_of_n</b>", "n = 8", "<b>all</b>", "<b>math</b>", "<b>judge</b>", "-. verifier .-"):
        assert part in text


def test_the_text_of_a_graph_shows_nodes_edges_and_choices() -> None:
    text = picture(routed())
    assert picture(routed().compile()) == text
    lines = [line.strip() for line in text.splitlines()]
    ids = {
        line.partition("<b>")[2].partition("</b>")[0]: line.partition("[")[0]
        for line in lines
        if "<b>" in line
    }
    assert "easy: self_consistency" in ids
    assert f'{ids["route"]} -.->|"hard"| {ids["best_of_n"]}' in lines
    assert f'{ids["check"]} -.->|"wrong"| {ids["route"]}' in lines
    assert f'{ids["check"]} -.->|"again"| {ids["check"]}' in lines
    assert f"{ids['best_of_n']} --> {ids['check']}" in lines
    assert "#34;short#34; #60;b#62;" in text


@pytest.mark.parametrize("shown", [JUDGED, routed()])
def test_a_png_is_drawn_here_and_shows_every_card(shown: Any, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "graph.png"
    assert picture(shown, path) == picture(shown)
    pixels = (image.imread(path)[:, :, :3] * 255).round().astype(int)
    for colour in ((0x4F, 0x46, 0xE5), (0x05, 0x96, 0x69), (0x1F, 0x29, 0x37)):
        assert (pixels == colour).all(axis=-1).any()
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()  # nothing is cut off


def test_other_formats(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture(routed(), tmp_path / "graph.svg")
    assert ElementTree.parse(tmp_path / "graph.svg").getroot().tag.endswith("svg")
    picture(routed(), tmp_path / "graph.pdf")
    assert (tmp_path / "graph.pdf").read_bytes().startswith(b"%PDF")
    text = picture(routed(), tmp_path / "graph.mmd")
    assert (tmp_path / "graph.mmd").read_text() == text


def test_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"'\.jpeg'.*\.png"):
        picture(JUDGED, tmp_path / "graph.jpeg")
    for name in ("none/graph.mmd", "none/graph.png"):
        with pytest.raises(StoreError, match="Cannot write"):
            picture(JUDGED, tmp_path / name)
    monkeypatch.delitem(sys.modules, "stratagem.graphs._drawing", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(MissingExtraError, match=r"stratagem\[bench\]"):
        picture(JUDGED, tmp_path / "graph.png")
    assert "best_of_n" in picture(JUDGED, tmp_path / "graph.mmd")


EDGES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20)


@settings(max_examples=100, deadline=None)
@given(EDGES, st.lists(st.tuples(st.floats(0.5, 4), st.floats(0.3, 4)), min_size=8, max_size=8))
def test_nodes_never_overlap_and_edges_go_down(
    pairs: list[tuple[int, int]], shapes: list[tuple[float, float]]
) -> None:
    sizes = {str(i): shape for i, shape in enumerate(shapes)}
    edges = [(str(a), str(b)) for a, b in pairs]
    layout = lay_out(sizes, edges, gap=0.4, rank_gap=0.7)
    boxes = {name: (*layout.centres[name], *sizes[name]) for name in sizes}
    for (x, y, w, h), (u, v, ww, hh) in combinations(boxes.values(), 2):
        assert abs(x - u) >= (w + ww) / 2 + 0.4 - 1e-6 or abs(y - v) >= (h + hh) / 2 + 0.7 - 1e-6
    for (source, target), bends in layout.paths.items():
        heights = [
            layout.bands[source][1],
            *(at for bend in bends for at in bend[1:]),
            layout.bands[target][0],
        ]
        assert heights == sorted(heights)
        for at, above, below in bends:  # passes beside the cards of the ranks between
            beside = [box for box in boxes.values() if above <= box[1] <= below]
            assert all(abs(at - x) >= w / 2 + 0.4 - 1e-6 for x, _, w, _ in beside)
    assert set(layout.paths) <= set(edges)


@settings(deadline=None)
@given(EDGES)
def test_without_cycles_every_edge_has_a_way_down(pairs: list[tuple[int, int]]) -> None:
    edges = [(str(min(p)), str(max(p))) for p in pairs if p[0] != p[1]]
    layout = lay_out({str(i): (1.0, 1.0) for i in range(8)}, edges, gap=0.4, rank_gap=0.7)
    assert set(layout.paths) == set(edges)


def test_plans_and_the_calls_of_an_answer_are_drawn(tmp_path: Path) -> None:
    @sg.tool(effect="read_only")
    async def half(n: int) -> int:
        """Half of n."""
        if n % 2:
            raise ValueError("odd")
        return n // 2

    tools = {"half": half}
    lines = ["a = half(12)", "b = half(a)", "c = half(b)", "d = half(c)", "e = half(a)"]
    plan = Plan.parse([parse(line, tools) for line in lines], tools)
    text = picture(plan)
    assert text.count("-->") == 4
    assert "a: half" in text

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> Distribution:
        return {"": 1.0} if tokens else {"\n".join(lines) if len(messages) == 2 else "The answer is 3.": 1.0}

    answer = sg.solve_sync("What?", sg.DivideThenAggregate(), llm=ToyModel(says), tools=[half])
    text = picture(answer.calls, tmp_path / "calls.png")
    assert (text.count(":::done"), text.count(":::failed"), text.count(":::skipped")) == (3, 1, 1)
    assert "odd" in text
    assert (tmp_path / "calls.png").stat().st_size > 10_000
