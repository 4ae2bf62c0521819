"""The answer first: what was measured, which cells are worth choosing, in plain words, and what to be careful about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness import stats
from harness.frontier import Standing
from harness.report.cells import NOT_RUN, OK, CellView, Column, Value, plain_table, withheld
from harness.report.derived import LN_PPL_RATIO, MEAN_ACCURACY_DIFFERENCE
from harness.report.markup import Markup, el, join
from harness.report.notes import notes
from harness.report.numbers import MINUS, show, with_unit
from harness.report.section import Section, column_display, interval, number, scheme
from harness.report.standing import cost_columns, quality_columns, standings
from harness.report.verdicts import all_within, margin_points, tasks, words
from harness.report.view import View

MARGIN_POINTS = 1.0
"""The loss of mean accuracy that the words of the table are about."""


def section(view: View) -> Section | None:
    parts = [el("div", *_tiles(view), cls="tiles")]
    for model in view.models:
        chosen = _chosen(view, model)
        if chosen is not None:
            parts.append(chosen)
    if said := len(notes(view)):
        which = "one note" if said == 1 else f"{said} notes"
        parts.append(el("p", "Before you trust a number: ", el("a", which, href="#notes"), cls="note"))
    return Section(id="summary", nav="Summary", title=view.title or view.suite or "Results", lead=_lead(view), body=join(*parts))


def _lead(view: View) -> str:
    models = ", ".join(view.models) or "no model"
    machine = plain_table(view.context.get("machine"))
    listed = machine.get("gpus")
    gpus = [plain_table(gpu) for gpu in listed] if isinstance(listed, list) else []
    on_gpu = gpus and str(view.context.get("device", "")).startswith("cuda")
    device = str(gpus[0].get("name")) if on_gpu else str(machine.get("cpu") or "")
    threads = view.context.get("threads")
    where = f" on {device}" if device else ""
    using = f" with {threads} threads" if threads and not gpus else ""
    when = f", {view.started_at[:10]}" if view.started_at else ""
    return f"{len(view.cells)} quantizations of {models}, each measured on its own packed artifact{where}{using}{when}."


def _tiles(view: View) -> list[Markup]:
    tiles = [tile for model in view.models[:2] if (tile := _pick(view, model)) is not None]
    for model in view.models[:2]:
        base = view.baseline_of(model)
        if base is None:
            continue
        facts = []
        for column in view.first(lambda places: places.baseline):
            if (value := base.values[column.key]).status == OK:
                how = column_display(view, column)
                facts.append(f"{_lower(column.metric.title)} {with_unit(number(column, value, how), how)}")
        subject = f"baseline of {model}" if len(view.models) > 1 else "the baseline"
        tiles.append(_tile(base.label, subject, ", ".join(facts)))
    return [*tiles, *_progress(view)]


def _progress(view: View) -> list[Markup]:
    """How much of what was asked is answered, withheld, failed, and not run."""
    asked = [o for c in view.cells for o in c.outcomes]
    answered = sum(o.status == OK for o in asked)
    whole = sum(all(o.status == OK or withheld(o) for o in c.outcomes) for c in view.cells)
    detail = f"{answered} of {len(asked)} questions answered"
    held = [count for c in view.cells if (count := sum(map(withheld, c.outcomes)))]
    if held:
        those = "one cell" if len(held) == 1 else f"{len(held)} cells"
        detail += f"; {sum(held)} on memory and speed are withheld, because the weights of {those} are simulated"
    tiles = [_tile(f"{whole} of {len(view.cells)}", "cells complete", detail)]
    failed = [count for c in view.cells if (count := sum(o.failure is not None and not withheld(o) for o in c.outcomes))]
    missing = sum(o.status == NOT_RUN for o in asked)
    if failed:
        cells = f"{len(failed)} {'cell' if len(failed) == 1 else 'cells'}"
        detail = f"{sum(failed)} questions failed, {missing} not run; reasons below"
        tiles.append(_tile(cells, "with failures", detail, alarm=True))
    elif missing:
        tiles.append(_tile(str(missing), "questions not run", "the run was stopped; the same command goes on"))
    return tiles


def _pick(view: View, model: str) -> Markup | None:
    """The smallest cell whose loss of mean accuracy is shown to be under the margin, and whose verdicts all say so where tasks
    are scored until one."""
    difference = view.column(MEAN_ACCURACY_DIFFERENCE.name)
    cost = next((c for c in cost_columns(view) if c.metric.phrase), None)
    base = view.baseline_of(model)
    if (difference is None and not tasks(view)) or cost is None or base is None or base.values[cost.key].status != OK:
        return None
    safe, smaller = [], 0
    for cell in view.cells:
        loss, bits = None if difference is None else cell.values[difference.key], cell.values[cost.key]
        if cell.model != model or cell.simulated or bits.status != OK or (loss is not None and loss.status != OK):
            continue
        if bits.value < base.values[cost.key].value:
            smaller += 1
            if all_within(view, cell) and (loss is None or stats.noninferior(_interval(loss), MARGIN_POINTS)):
                safe.append((bits.value, cell))
    if not smaller:
        return None
    shown = [f"a loss shown to be under {MARGIN_POINTS:g} point"] if difference is not None else []
    shown += [f"every verdict within {margin_points(view)}"] if tasks(view) else []
    label = f"{f'smallest of {model}' if len(view.models) > 1 else 'smallest'} with {' and '.join(shown)}"
    if not safe:
        return _tile("none", label, "more items, or more bits, would be needed")
    bits_value, cell = min(safe, key=lambda pair: pair[0])
    share = bits_value / base.values[cost.key].value
    detail = f"{show(bits_value, cost.metric.unit)} {cost.metric.phrase}, {share:.0%} of the baseline's"
    return _tile(cell.label, label, detail, main=True)


def _interval(value: Value) -> stats.Interval:
    return stats.Interval(value=value.value, low=value.low, high=value.high, n=value.n or 0)


def _tile(value: str, label: str, detail: str, *, alarm: bool = False, main: bool = False) -> Markup:
    cls = f"tile{' alarm' if alarm else ''}{' main' if main else ''}"
    return el("div", el("strong", value), el("span", label), el("small", detail), cls=cls)


def _chosen(view: View, model: str) -> Markup | None:
    """The cells on the frontier of the first quality against the first cost, cheapest last, in words."""
    qualities, costs = quality_columns(view), cost_columns(view)
    if not qualities or not costs:
        return None
    cells = [c for c in view.cells if c.model == model]
    quality = next((q for q in qualities if any(c.values[q.key].status == OK for c in cells)), qualities[0])
    cost = costs[0]
    stands = standings(view, cells, cost, quality)
    on = sorted(
        (c for c in cells if c.id in stands and stands[c.id].status == "frontier"), key=lambda c: c.values[cost.key].value
    )
    if not on:
        return None
    kept, merged = _merge(on, stands)
    extra = [c for c in view.first(lambda places: places.choices) if c.key != cost.key]
    columns = [cost, *extra, quality]
    head = el("tr", el("th", "Scheme", scope="col"), *(_head(view, c) for c in columns), el("th", "In words", scope="col"))
    rows = []
    for cell in reversed(kept):
        said = [words(view, cell), _words(view, cell)]
        if merged[cell.id]:
            said.append(f"Dearer and not better beyond the noise: {', '.join(c.label for c in merged[cell.id])}.")
        numbers = [_number(view, cell, c) for c in columns]
        text = el("td", " ".join(w for w in said if w), cls="words")
        rows.append(el("tr", el("th", scheme(view, cell), scope="row"), *numbers, text))
    title = f"Worth choosing between: {model}" if len(view.models) > 1 else "Worth choosing between"
    table = el("table", el("thead", head), el("tbody", *rows), cls="plain choices")
    tied = [c.label for c in cells if c.id in stands and stands[c.id].status == "tied"]
    note = f"Each row gains on the next in {_lower(quality.metric.title)} beyond the noise, and costs more bits. "
    note += f"Beaten by one of them in value only, within the noise: {', '.join(tied)}. " if tied else ""
    scroller = el("div", table, cls="scroll", tabindex="0", role="region", aria_label=title)
    return join(el("h3", title), scroller, el("p", note, cls="note"))


def _merge(on: Sequence[CellView], stands: Mapping[str, Standing]) -> tuple[list[CellView], dict[str, list[CellView]]]:
    """From the cheapest up: a frontier cell is kept if it beats all kept ones beyond the noise, else it is named beside the best
    of those that it ties with."""
    kept: list[CellView] = []
    merged: dict[str, list[CellView]] = {}
    for cell in on:
        ties = [k for k in kept if k.id in stands[cell.id].ties]
        if ties:
            merged[ties[-1].id].append(cell)
        else:
            kept.append(cell)
            merged[cell.id] = []
    return kept, merged


def _lower(title: str) -> str:
    return title if title[:2].isupper() or title.startswith("ln") else title[:1].lower() + title[1:]


def _head(view: View, column: Column) -> Markup:
    how = column_display(view, column)
    return el("th", column.metric.title, el("small", how.label) if how.label else None, scope="col", cls="num")


def _number(view: View, cell: CellView, column: Column) -> Markup:
    value = cell.values[column.key]
    how = column_display(view, column)
    if value.status != OK:
        return el("td", "–", cls="num muted", data_tip=f"{value.status}: {value.reason}", tabindex="0")
    between = interval(column, value, how)
    return el("td", number(column, value, how), el("small", between) if between else None, cls="num")


def _words(view: View, cell: CellView) -> str:
    """What the paired comparison allows to be said; never 'no loss'."""
    if cell.baseline:
        return "The baseline."
    column = view.column(MEAN_ACCURACY_DIFFERENCE.name)
    if column is not None and (value := cell.values[column.key]).status == OK:
        said = stats.state(_interval(value), MARGIN_POINTS)
        low, high = (None if x is None else show(x, "points", signed=True) for x in (value.low, value.high))
        change = f"{show(value.value, 'points', signed=True)} points ({low} to {high})"
        if said.finding is stats.Finding.LOSS:
            return f"Loses: {change}."
        if said.finding is stats.Finding.GAIN:
            return f"Scores above the baseline: {change}."
        if said.finding is stats.Finding.WITHIN:
            return f"Any loss is under {MARGIN_POINTS:g} point: {change}."
        worst = (
            "" if said.largest_loss is None else f"; up to {show(said.largest_loss, 'points')} points of loss cannot be excluded"
        )
        return f"No loss shown: {change}{worst}."
    column = view.column(LN_PPL_RATIO.name)
    if column is not None and (value := cell.values[column.key]).status == OK:
        return f"Perplexity {_percent(value.value)} ({_percent(value.low)} to {_percent(value.high)})."
    return ""


def _percent(log_ratio: float | None) -> str:
    if log_ratio is None:
        return "?"
    change = math.expm1(log_ratio) * 100
    digits = 1 if abs(change) >= 0.95 else 2
    return f"{MINUS if change < 0 else '+'}{abs(change):.{digits}f}\u202f%"
