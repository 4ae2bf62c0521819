"""What quantizing cost, and what measuring took against what had been forecast."""

from __future__ import annotations

from collections.abc import Sequence

from harness.costs import CellCost
from harness.metrics.quantize import PEAK, SECONDS
from harness.report.cells import CellView, identity
from harness.report.markup import Markup, el, join
from harness.report.numbers import display, show
from harness.report.pieces import by_model, cells_of, fold, head_of, numeric, table, value_of
from harness.report.section import Section
from harness.report.svg import Dot, Row, chart, span
from harness.report.view import View


def section(view: View) -> Section | None:
    made = by_model(view, lambda model: _block(view, model))
    took = by_model(view, lambda model: _took(view, model))
    if not made and not took:
        return None
    return Section(
        id="making",
        nav="Cost",
        title="What it took to make and to measure",
        lead="Quantizing is paid once, on the machine that does it; all else is what this run spent.",
        body=join(*made, el("h3", "Forecast against elapsed") if took else None, *took),
    )


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _block(view: View, model: str) -> Markup | None:
    cells = [c for c in cells_of(view, model) if value_of(view, c, SECONDS.name, "")]
    values = [v[0].value for c in cells if (v := value_of(view, c, SECONDS.name, "")) is not None and v[0].value > 0]
    scale = span(values, log=True)
    if scale is None:
        return None
    rows = []
    for cell in cells:
        found = value_of(view, cell, SECONDS.name, "")
        assert found is not None
        text = duration(found[0].value)
        rows.append(Row(label=cell.label, text=text, dots=[Dot(value=found[0].value, hue=0, tip=text)]))
    drawn = chart("Time to quantize, by cell, logarithmic", rows, scale, duration)
    note = el("p", "Wall time of the quantizing call, on a logarithmic axis.", cls="note")
    return join(drawn, note, fold("Table of quantizing", _table(view, cells)))


def _table(view: View, cells: Sequence[CellView]) -> Markup:
    peaks = [v[0].value for c in cells if (v := value_of(view, c, PEAK.name, "")) is not None]
    how = display("B", peaks)
    rows = []
    for cell in cells:
        seconds, peak = (value_of(view, cell, m, "") for m in (SECONDS.name, PEAK.name))
        tokens = next((o.facts.get("calibration_tokens") for o in cell.outcomes if o.question.probe == "quantize"), None)
        squares = (
            "–" if seconds is None else duration(seconds[0].value),
            "–" if peak is None else show(peak[0].value, "B", how),
            f"{tokens:,}" if isinstance(tokens, int) and tokens else "–",
        )
        rows.append(el("tr", head_of(cell), *(el("td", text, cls="num") for text in squares)))
    columns = ["Cell", numeric("Time"), numeric("Peak memory", how.label), numeric("Calibration tokens")]
    return table("What quantizing cost", columns, rows)


# ---- forecast against elapsed ----


def _took(view: View, model: str) -> Markup | None:
    """Of each cell the invocation that asked all of it, else all that it took; the last such counts."""
    costs: dict[str, list[CellCost]] = {}
    for cost in view.costs:
        costs.setdefault(identity(cost.cell), []).append(cost)
    pairs = [(cell, costs[identity(cell.cell)]) for cell in cells_of(view, model) if identity(cell.cell) in costs]
    if not pairs:
        return None
    chosen = [(cell, next((c for c in reversed(those) if c.whole), those[-1])) for cell, those in pairs]
    numbers = [cost.seconds for _, cost in chosen]
    numbers += [
        x for _, c in chosen if c.expected.seconds is not None for x in (c.expected.seconds.low, c.expected.seconds.high) if x
    ]
    scale = span(numbers, log=True)
    if scale is None:
        return None
    drawn = chart("Forecast and elapsed time, by cell, logarithmic", [_row(*pair) for pair in chosen], scale, duration)
    note = "The mark is what it took, the line what had been forecast just before; no line: nothing was known."
    rows = [_costs(cell, cost) for cell, cost in chosen]
    columns = ["Cell", numeric("Took"), numeric("Forecast"), el("th", "Spent on", scope="col")]
    return join(drawn, el("p", note, cls="note"), fold("Table of costs", table("Forecast against elapsed", columns, rows)))


def _row(cell: CellView, cost: CellCost) -> Row:
    expected = cost.expected.seconds
    low, high = (None, None) if expected is None else (expected.low, expected.high)
    low = low or None
    text = duration(cost.seconds) + ("" if cost.whole else " (a part)")
    tip = f"took {text}; forecast {_forecast(cost)}"
    interval = (low, high) if low is not None and high is not None else (None, None)
    return Row(label=cell.label, text=text, dots=[Dot(value=cost.seconds, hue=0, low=interval[0], high=interval[1], tip=tip)])


def _forecast(cost: CellCost) -> str:
    expected = cost.expected.seconds
    if expected is None:
        return "none"
    if expected.high is None:
        return f"{duration(expected.low)} or more"
    return f"{duration(expected.low)} to {duration(expected.high)}"


def _costs(cell: CellView, cost: CellCost) -> Markup:
    spent: dict[str, float] = {}
    for piece in cost.pieces:
        spent[piece.what] = spent.get(piece.what, 0.0) + piece.seconds
    most = sorted(spent.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
    said = ", ".join(f"{what} {duration(seconds)}" for what, seconds in most)
    took = duration(cost.seconds) + ("" if cost.whole else " (a part)")
    return el("tr", head_of(cell), el("td", took, cls="num"), el("td", _forecast(cost), cls="num"), el("td", said, cls="why"))
