"""Pictures of graphs and strategies: Mermaid text, and drawings made on this machine (no web service)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stratagem.core.errors import ConfigurationError, MissingExtraError, StoreError
from stratagem.graphs._diagram import Card, Diagram, Drawable, diagram_of

_TEXT = {".mmd", ".mermaid", ".txt"}
_DRAWN = {".png", ".svg", ".pdf"}


def picture(graph: Drawable, path: str | Path | None = None) -> str:
    """The graph as Mermaid text; also drawn to ``path`` if that is given.

    Nodes made of strategies show their parameters and the components inside.

    Args:
        graph: a strategy, a ``StateGraph``, a compiled graph, a plan of calls of tools, or the calls of an answer,
            with what became of them.
        path: a ``.png``, ``.svg`` or ``.pdf`` to draw (needs the extra ``bench``), or a ``.mmd`` for the text.

    Raises:
        ConfigurationError: the file name ends in something else, or there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
        StoreError: the file cannot be written.
    """
    diagram = diagram_of(graph)
    if not diagram.cards:
        raise ConfigurationError("There is nothing to draw: no node, no call.")
    text = _mermaid(diagram)
    if path is not None:
        path = Path(path)
        if path.suffix not in _TEXT | _DRAWN:
            raise ConfigurationError(
                f"Cannot draw to {path}: unknown ending {path.suffix!r}.",
                remedy=f"Use one of {', '.join(sorted(_TEXT | _DRAWN))}.",
            )
        try:
            if path.suffix in _TEXT:
                path.write_text(text, encoding="utf-8")
            else:
                _draw(diagram, path)
        except OSError as error:
            raise StoreError(f"Cannot write {path}: {error.strerror}.") from None
    return text


def _draw(diagram: Diagram, path: Path) -> None:
    try:
        from stratagem.graphs._drawing import draw
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtraError("matplotlib", "bench") from error
    draw(diagram, path)


_CLASSES = """\
    classDef end_ fill:#1f2937,stroke:#1f2937,color:#ffffff
    classDef step fill:#ffffff,stroke:#64748b,color:#0f172a
    classDef strategy fill:#eef2ff,stroke:#4f46e5,color:#1e1b4b
    classDef verifier fill:#ecfdf5,stroke:#059669,color:#064e3b
    classDef done fill:#ecfdf5,stroke:#059669,color:#064e3b
    classDef failed fill:#fef2f2,stroke:#dc2626,color:#7f1d1d
    classDef skipped fill:#f8fafc,stroke:#94a3b8,color:#475569
"""


def _mermaid(diagram: Diagram) -> str:
    ids = {name: f"n{i}" for i, name in enumerate(diagram.cards)}
    lines = ["flowchart TD"]
    for name, shown in diagram.cards.items():
        lines += _mermaid_card(ids[name], shown)
    for arrow in diagram.arrows:
        stroke = "-.->" if arrow.choice else "-->"
        label = f'|"{_escaped(arrow.label)}"|' if arrow.label else ""
        lines.append(f"{ids[arrow.source]} {stroke}{label} {ids[arrow.target]}")
    return "\n    ".join(lines) + "\n" + _CLASSES


def _mermaid_card(id: str, shown: Card) -> Iterator[str]:
    if shown.style == "end":
        yield f'{id}(["{_escaped(shown.title)}"]):::end_'
        return
    text = "<br/>".join([f"<b>{_escaped(shown.title)}</b>", *(f"{k} = {_escaped(v)}" for k, v in shown.rows)])
    yield f'{id}["{text}"]:::{shown.style}'
    for i, (key, part) in enumerate(shown.parts):
        yield from _mermaid_card(f"{id}_{i}", part)
        yield f"{id} -. {key} .- {id}_{i}"


def _escaped(text: str) -> str:
    """Mermaid's own escapes: its labels are HTML inside double quotes."""
    return "".join(c if c.isalnum() or c in " .,_-=:()/" else f"#{ord(c)};" for c in text)
