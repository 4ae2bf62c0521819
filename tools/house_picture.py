"""The picture of the rooms as SVG, and their table, for the documentation.

Layers lie one below the other as in `house.LAYERS`. Of the arrows only those are drawn that no chain of others implies (the
transitive reduction), because all of them would hide each other; an arrow that leads upwards is always drawn, in red. Places
within a layer follow from the arrows (layered drawing; Sugiyama, Tagawa and Toda 1981), so the picture is made of imports alone.
"""

from __future__ import annotations

import ast
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

from tools.house import LAYERS, ROOT, House, depth, upward

PICTURE = ROOT / "docs" / "house.svg"
PAGE = ROOT / "docs" / "house.md"
BEGIN, END = "<!-- rooms: made by python -m tools.house -->", "<!-- end of rooms -->"

BOX_WIDTH, BOX_HEIGHT, GAP, ROW = 196, 62, 26, 106
LANE = 20
"""Pixels that an arrow needs which passes a layer between two boxes."""

MARGIN = 24

Arrow = tuple[str, str]
Node = tuple[str, int]
"""A room in its layer, or an arrow (`from>to`) where it passes one."""

STYLE = """
  .back { fill: #ffffff; }
  .box { fill: #f3f6fa; stroke: #8593a5; stroke-width: 1.2; }
  .name { font: 600 15px system-ui, sans-serif; fill: #17202c; }
  .what { font: 11px system-ui, sans-serif; fill: #4a5768; }
  .arrow { fill: none; stroke: #6c7a8d; stroke-width: 1.3; }
  .head { fill: #6c7a8d; }
  .up { stroke: #c62828; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    .back { fill: #12171e; }
    .box { fill: #1e2732; stroke: #6d7d91; }
    .name { fill: #eef2f7; }
    .what { fill: #b3bfcd; }
    .arrow { stroke: #8a98aa; }
    .head { fill: #8a98aa; }
    .up { stroke: #ff6b6b; }
  }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Where everything lies, in pixels: the centre of each node by layer, and the layers that each drawn arrow passes."""

    across: Mapping[Node, float]
    paths: Mapping[Arrow, Sequence[Node]]
    width: float


def pages(house: House) -> dict[Path, str]:
    """What the documentation has to hold, by file."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return {PICTURE: picture(house), PAGE: f"{before}{BEGIN}\n{rooms_table(house)}{END}{after}"}


def rooms_table(house: House) -> str:
    """The rooms from the top, each with what it is for and why it stands there, in Markdown."""
    lines = ["| room | what it is for | why it stands there |", "|---|---|---|"]
    for layer in LAYERS:
        for name in layer.rooms:
            if name in house.rooms:
                lines.append(f"| `{_shown(house, name)}` | {purpose(house, name)} | {layer.why} |")
    return "\n".join(lines) + "\n"


def purpose(house: House, name: str) -> str:
    """The first sentence that a room says of itself."""
    docstring = ast.get_docstring(ast.parse(_init(house, name).read_text(encoding="utf-8"))) or ""
    first = " ".join(docstring.split("\n\n")[0].split())
    return first.split(". ")[0].rstrip(".:")


def _init(house: House, name: str) -> Path:
    return house.modules[house.folder.name if name == house.folder.name else f"{house.folder.name}.{name}"]


def _shown(house: House, name: str) -> str:
    if name == house.folder.name:
        return "__init__.py"
    return f"{name}/" if _init(house, name).name == "__init__.py" else f"{name}.py"


def reduced(arrows: Iterable[Arrow]) -> list[Arrow]:
    """The arrows that no chain of others implies. They must form no cycle (Aho, Garey and Ullman 1972)."""
    all_arrows = set(arrows)
    below: dict[str, set[str]] = {}
    for source, target in all_arrows:
        below.setdefault(source, set()).add(target)

    def reaches(start: str) -> set[str]:
        reached: set[str] = set()
        pending = list(below.get(start, ()))
        while pending:
            node = pending.pop()
            if node not in reached:
                reached.add(node)
                pending += below.get(node, ())
        return reached

    chained = {node: {far for near in below[node] for far in reaches(near)} for node in below}
    return sorted((source, target) for source, target in all_arrows if target not in chained[source])


def picture(house: House) -> str:
    """The SVG, the same for the same imports."""
    arrows = list(house.arrows())
    up = set(upward(arrows))
    down = reduced(arrow for arrow in arrows if arrow not in up)
    drawing = _drawn(house.rooms, down)
    height = 2 * MARGIN + ROW * (len(LAYERS) - 1) + BOX_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width:.0f} {height}" role="img" '
        f'aria-label="The rooms of {escape(house.folder.name)} in layers; arrows show who imports whom">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect class="back" width="{drawing.width:.0f}" height="{height}" rx="8"/>',
    ]
    starts, ends = _spread(drawing, source=True), _spread(drawing, source=False)
    for arrow, nodes in drawing.paths.items():
        lines.append(_line(arrow, nodes, drawing, (starts[arrow], ends[arrow])))
    for source, target in sorted(up):
        nodes = [(source, depth(source)), (target, depth(target))]
        lines.append(_line((source, target), nodes, drawing, (0.0, 0.0), upwards=True))
    for name in house.rooms:
        lines += _box(house, name, drawing.across[name, depth(name)])
    return "\n".join([*lines, "</svg>"]) + "\n"


def _top(layer: int) -> float:
    return MARGIN + ROW * layer


def _box(house: House, name: str, centre: float) -> list[str]:
    left, top = centre - BOX_WIDTH / 2, _top(depth(name))
    said = textwrap.wrap(_short(purpose(house, name)), 34)
    lines = [
        f'<rect class="box" x="{left:.1f}" y="{top:.1f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>',
        f'<text class="name" x="{centre:.1f}" y="{top + 21:.1f}" text-anchor="middle">{escape(_shown(house, name))}</text>',
    ]
    for number, text in enumerate(said):
        y = top + 38 + 14 * number
        lines.append(f'<text class="what" x="{centre:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>')
    return lines


def _short(sentence: str) -> str:
    """As much of a sentence as two lines of a box hold, cut where it pauses."""
    pauses = [place for place, character in enumerate(sentence) if character in ",:;"]
    for end in [len(sentence), *reversed(pauses)]:
        if len(textwrap.wrap(sentence[:end], 34)) <= 2:
            return sentence[:end].replace("`", "")
    return textwrap.shorten(sentence, 60, placeholder=" …")


def _line(arrow: Arrow, nodes: Sequence[Node], drawing: Drawing, shift: tuple[float, float], *, upwards: bool = False) -> str:
    """One arrow from the lower side of its box to the upper side of the other, past the boxes between."""
    points: list[tuple[float, float]] = []
    for place, node in enumerate(nodes):
        x, top = drawing.across[node], _top(node[1])
        if place == 0:
            points.append((x + shift[0], top if upwards else top + BOX_HEIGHT))
        elif place == len(nodes) - 1:
            points.append((x + shift[1], top + BOX_HEIGHT if upwards else top - 1))
        else:
            points += [(x, top), (x, top + BOX_HEIGHT)]
    d = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        bend = (y1 - y0) / 2
        d += f"L{x1:.1f} {y1:.1f}" if x0 == x1 else f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
    title = escape(f"{arrow[0]} imports {arrow[1]}")
    kind = "arrow up" if upwards else "arrow"
    return f'<path class="{kind}" marker-end="url(#head)" d="{d}"><title>{title}</title></path>'


def _spread(drawing: Drawing, *, source: bool) -> dict[Arrow, float]:
    """How far from the middle of a box each arrow starts or ends, so that arrows do not lie on each other."""
    shifts: dict[Arrow, float] = {}
    for name in {arrow[0 if source else 1] for arrow in drawing.paths}:
        mine = [arrow for arrow in drawing.paths if arrow[0 if source else 1] == name]
        mine.sort(key=lambda arrow: (drawing.across[drawing.paths[arrow][1 if source else -2]], arrow))
        step = min(26.0, (BOX_WIDTH - 40) / max(1, len(mine) - 1))
        shifts |= {arrow: step * (place - (len(mine) - 1) / 2) for place, arrow in enumerate(mine)}
    return shifts


def _drawn(rooms: Sequence[str], arrows: Sequence[Arrow]) -> Drawing:
    """Orders each layer so that arrows cross little, then moves all nodes towards those that they are joined with."""
    paths: dict[Arrow, list[Node]] = {}
    for source, target in arrows:
        between: list[Node] = [(f"{source}>{target}", level) for level in range(depth(source) + 1, depth(target))]
        paths[source, target] = [(source, depth(source)), *between, (target, depth(target))]
    layers: list[list[Node]] = [[(name, level) for name in layer.rooms if name in rooms] for level, layer in enumerate(LAYERS)]
    for nodes in paths.values():
        for node in nodes[1:-1]:
            layers[node[1]].append(node)
    joined: dict[Node, list[Node]] = {node: [] for layer in layers for node in layer}
    for nodes in paths.values():
        for one, next_one in pairwise(nodes):
            joined[one].append(next_one)
            joined[next_one].append(one)
    across: dict[Node, float] = {}
    for layer in layers:
        across |= _placed(layer, dict.fromkeys(layer, 0.0))
    for sweep in range(60):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            above = [n for node in layer for n in joined[node] if (n[1] < node[1]) == (sweep % 2 == 0)]
            wished = {node: _mean([across[n] for n in joined[node] if n in above], across[node]) for node in layer}
            if sweep < 24:
                layer.sort(key=lambda node: (wished[node], node))
            else:  # the order stands; both neighbours pull
                wished = {node: _mean(_pulls(node, joined[node], across), across[node]) for node in layer}
            across |= _placed(layer, wished)
    left = min(across[node] - _width(node) / 2 for node in across) - MARGIN
    across = {node: x - left for node, x in across.items()}
    return Drawing(across=across, paths=paths, width=max(across[node] + _width(node) / 2 for node in across) + MARGIN)


def _pulls(node: Node, neighbours: Sequence[Node], across: Mapping[Node, float]) -> list[float]:
    """Where the neighbours of a node lie; those on the same long arrow count more, so that it runs straight."""
    return [across[n] for n in neighbours for _ in range(6 if ">" in node[0] and n[0] == node[0] else 1)]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return math.fsum(values) / len(values) if values else otherwise


def _width(node: Node) -> float:
    return LANE if ">" in node[0] else BOX_WIDTH + GAP


def _placed(layer: Sequence[Node], wished: Mapping[Node, float]) -> dict[Node, float]:
    """Places in the layer's order, as near to the wished ones as widths allow: half way between what a pass from the left and
    one from the right give."""
    from_left: list[float] = []
    for node in layer:
        least = from_left[-1] + (_width(layer[len(from_left) - 1]) + _width(node)) / 2 if from_left else wished[node]
        from_left.append(max(least, wished[node]))
    from_right: list[float] = []
    for node in reversed(layer):
        after = layer[len(layer) - len(from_right)] if from_right else node
        most = from_right[-1] - (_width(after) + _width(node)) / 2 if from_right else wished[node]
        from_right.append(min(most, wished[node]))
    return {node: (a + b) / 2 for node, a, b in zip(layer, from_left, reversed(from_right), strict=True)}
