"""Layered drawing of a directed graph (Sugiyama, Tagawa and Toda 1981): ranks, order, places.

Coordinates are inches; x grows to the right and y downwards.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

Edge = tuple[str, str]
Point = tuple[float, float]
_SWEEPS = 12


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each node's centre is, and what each edge passes on its way down.

    ``bands`` are the upper and lower end of each node's rank; ``paths`` gives for each edge the places
    (x, upper end, lower end) at which it crosses the ranks in between. An edge that leads back up has no
    path: it is drawn around the others.
    """

    centres: dict[str, Point]
    bands: dict[str, Point]
    paths: dict[Edge, tuple[tuple[float, float, float], ...]]


def lay_out(
    sizes: Mapping[str, tuple[float, float]], edges: Sequence[Edge], *, gap: float, rank_gap: float
) -> Layout:
    """Place nodes of the given (width, height): edges go down, crossings are few, neighbours stand in line."""
    down = _without_cycles(sizes, edges)
    ranks = _ranks(list(sizes), down)
    chains: dict[Edge, list[str]] = {}
    width = {name: w for name, (w, _) in sizes.items()}
    rank_of = {name: i for i, rank in enumerate(ranks) for name in rank}
    above: dict[str, list[str]] = defaultdict(list)
    below: dict[str, list[str]] = defaultdict(list)
    for source, target in down:
        chain = [source]
        for i in range(rank_of[source] + 1, rank_of[target]):
            bend = f"{source}\0{target}\0{i}"
            ranks[i].append(bend)
            width[bend] = 0.0
            chain.append(bend)
        chain.append(target)
        chains[source, target] = chain
        for a, b in itertools.pairwise(chain):
            below[a].append(b)
            above[b].append(a)
    for sweep in range(_SWEEPS):
        _reorder(ranks, above if sweep % 2 == 0 else below, downwards=sweep % 2 == 0)
    x = _columns(ranks, width, above, below, gap)
    bands: dict[str, Point] = {}
    y = 0.0
    for rank in ranks:
        height = max(sizes[name][1] for name in rank if name in sizes)
        bands |= dict.fromkeys(rank, (y, y + height))
        y += height + rank_gap
    return Layout(
        {name: (x[name], sum(bands[name]) / 2) for name in sizes},
        bands,
        {edge: tuple((x[b], *bands[b]) for b in chain[1:-1]) for edge, chain in chains.items()},
    )


def _without_cycles(names: Mapping[str, object], edges: Sequence[Edge]) -> list[Edge]:
    """The edges that do not lead back to where a depth-first walk from the first node has come from."""
    following: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        following[source].append(target)
    back: set[Edge] = set()
    done: set[str] = set()

    def walk(name: str, path: set[str]) -> None:
        for target in following[name]:
            if target in path:
                back.add((name, target))
            elif target not in done:
                walk(target, path | {target})
        done.add(name)

    for name in names:
        if name not in done:
            walk(name, {name})
    return [edge for edge in dict.fromkeys(edges) if edge not in back]


def _ranks(names: list[str], down: list[Edge]) -> list[list[str]]:
    """Each node as far down as the longest way to it."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from(down)
    return [sorted(rank, key=names.index) for rank in nx.topological_generations(graph)]


def _reorder(ranks: list[list[str]], neighbours: Mapping[str, list[str]], *, downwards: bool) -> None:
    """Sort each rank by the mean place of its nodes' neighbours in the rank before (barycentres)."""
    for rank in ranks if downwards else reversed(ranks):
        place = {name: i for other in ranks for i, name in enumerate(other)}
        now = {name: float(i) for i, name in enumerate(rank)}
        for name in rank:
            if near := neighbours.get(name):
                now[name] = sum(place[n] for n in near) / len(near)
        rank.sort(key=now.__getitem__)


def _columns(
    ranks: list[list[str]],
    width: Mapping[str, float],
    above: Mapping[str, list[str]],
    below: Mapping[str, list[str]],
    gap: float,
) -> dict[str, float]:
    x = dict.fromkeys(width, 0.0)
    for sweep in range(_SWEEPS):
        for rank in ranks if sweep % 2 == 0 else reversed(ranks):
            wanted = []
            for name in rank:
                near = [*above.get(name, ()), *below.get(name, ())] if sweep else []
                wanted.append(sum(x[n] for n in near) / len(near) if near else x[name])
            for name, at in zip(rank, _apart(wanted, [width[n] for n in rank], gap), strict=True):
                x[name] = at
    return x


def _apart(wanted: list[float], widths: list[float], gap: float) -> list[float]:
    """The places nearest to those wanted (least squares) at which nothing overlaps: isotonic regression."""
    offsets = [0.0]
    for left, right in itertools.pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + gap)
    blocks: list[tuple[float, int]] = []  # mean, members
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, members = blocks.pop()
            mean, count = (mean * count + before * members) / (count + members), count + members
        blocks.append((mean, count))
    shifts = [mean for mean, count in blocks for _ in range(count)]
    return [shift + offset for shift, offset in zip(shifts, offsets, strict=True)]
