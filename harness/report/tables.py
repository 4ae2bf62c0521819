"""Stored results for people: the cells and metrics that are asked for, as tables with intervals and as a summary.

`select` narrows a view; the formats draw what is left: `text` for a terminal, Markdown, LaTeX, and the short Markdown of a pull
request. One line per cell; without a choice of metrics, the few that one chooses by. The tidy rows, one per cell and metric, are
in `frame`.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from harness.decide import say
from harness.errors import BadInput
from harness.frontier import Standing
from harness.report.answer import offer
from harness.report.cells import OK, CellView, Column
from harness.report.markdown import text as in_markdown
from harness.report.numbers import THIN, Display
from harness.report.section import STATUS_WORDS, bracket, column_display, number
from harness.report.standing import headline
from harness.report.terminal import MARKS, frontier_words, plain, terminal_columns, terminal_table
from harness.report.view import View

T = TypeVar("T")
MOST_IN_SUMMARY = 8
"""Lines of a summary's table of one model: what else stands on the frontier is counted."""

_SENTENCE = 2000
"""Characters of a sentence of ours that are written in Markdown; of a name far fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of the results is wanted: names as they stand in the results; empty is all."""

    models: Sequence[str] = ()
    methods: Sequence[str] = ()
    metrics: Sequence[str] = ()
    bits: Sequence[float] = ()


def select(view: View, choice: Choice) -> View:
    """The view without the cells and columns that were not asked for. BadInput names the nearest spelling of what is not there.
    Values stay what they are in the whole run: corrections and frontiers are not made anew for a part of it."""
    models = _known("model", choice.models, view.models)
    methods = _known("method", choice.methods, view.methods)
    metrics = _known("metric", choice.metrics, dict.fromkeys(c.metric.name for c in view.columns))
    widths = sorted({c.cell.bits for c in view.cells}, reverse=True)
    bits = [float(b) for b in _known("bits", [f"{b:g}" for b in choice.bits], [f"{b:g}" for b in widths])]
    cells = tuple(
        cell for cell in view.cells if _in(cell.model, models) and _in(cell.cell.method, methods) and _in(cell.cell.bits, bits)
    )
    if not cells:
        raise BadInput("no cell of these results is all of that; leave out one of --model, --method and --bits")
    columns = tuple(c for c in view.columns if _in(c.metric.name, metrics))
    if not (models or methods or bits or metrics):
        return view
    kept_models = tuple(m for m in view.models if any(c.model == m for c in cells))
    kept_methods = tuple(m for m in view.methods if any(c.cell.method == m for c in cells))
    return dataclasses.replace(view, cells=cells, columns=columns, models=kept_models, methods=kept_methods)


def _in(value: T, wanted: Collection[T]) -> bool:
    return not wanted or value in wanted


def _known(kind: str, asked: Iterable[str], there: Iterable[str]) -> list[str]:
    known = list(there)
    found = []
    for name in asked:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f"did you mean {close[0]!r}? " if close else ""
            listed = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
            raise BadInput(plain(f"--{kind} {name}: not in these results; {meant}There are: {listed or 'none'}"))
        found.append(name)
    return found


# ---- tables ----


def text(whole: View, shown: View, choice: Choice) -> bytes:
    """For a terminal: plain text, no escape sequences. `whole` is the view that `shown` was selected from: frontiers are its."""
    from rich.console import Console

    table = terminal_table(shown, _columns(shown, choice), whole=whole, intervals=bool(choice.metrics))
    buffer = io.StringIO()
    console = Console(file=buffer, width=400, color_system=None, legacy_windows=False)
    console.print(table)
    metrics = len({c.metric.name for c in whole.columns})
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    lines += [f"{metrics} metrics are stored: --metric NAME shows one with its intervals, --format csv all of them"]
    return "".join(f"{line}\n" for line in lines).encode()


def markdown(whole: View, shown: View, choice: Choice) -> bytes:
    """A table of Markdown: one line per cell, intervals behind the values."""
    columns, displays = _with_displays(shown, choice)
    head = ["scheme", *(_headed(c, displays[c.key]) for c in columns), "frontier"]
    if len(shown.models) > 1:
        head.insert(0, "model")
    lines = [_row(head), _row(["---"] * (1 + (len(shown.models) > 1)) + ["---:"] * len(columns) + [":---:"])]
    standing = headline(whole)
    for cell in shown.cells:
        entries = [cell.model] if len(shown.models) > 1 else []
        entries += [_label(cell), *(_entry(cell, c, displays[c.key]) for c in columns)]
        lines.append(_row([*map(in_markdown, entries), _mark(standing, cell)]))
    note = frontier_words(whole)
    return ("\n".join(lines) + (f"\n\n{in_markdown(note, _SENTENCE)}" if note else "") + "\n").encode()


def latex(whole: View, shown: View, choice: Choice) -> bytes:
    """A `tabular` for `booktabs`; what TeX would take for a command is escaped."""
    columns, displays = _with_displays(shown, choice)
    several = len(shown.models) > 1
    head = [*(["model"] if several else []), "scheme", *(_headed(c, displays[c.key]) for c in columns), "frontier"]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' * (1 + several)}{'r' * len(columns)}c}}",
        "\\toprule",
        " & ".join(map(in_latex, head)) + " \\\\",
        "\\midrule",
    ]
    standing = headline(whole)
    for cell in shown.cells:
        entries = [cell.model] if several else []
        entries += [_label(cell), *(_entry(cell, c, displays[c.key]) for c in columns)]
        stand = standing.get(cell.id)
        sign = {"frontier": "$\\bullet$", "tied": "$\\circ$"}.get(stand.status, "") if stand else ""
        lines.append(" & ".join([*map(in_latex, entries), sign]) + " \\\\")
    note = frontier_words(whole).replace(MARKS["frontier"], "bullet:").replace(MARKS["tied"], "circle:")
    lines += ["\\bottomrule", "\\end{tabular}", *([f"% {_comment(note)}"] if note else [])]
    return ("\n".join(lines) + "\n").encode()


def summary(whole: View, shown: View, choice: Choice) -> bytes:
    """Short Markdown for a pull request: for each model what to deploy, in a sentence, and the cells of the frontier beside the
    baseline."""
    offered = offer(whole)
    columns, displays = _with_displays(shown, choice)
    standing = headline(whole)
    parts = [f"### {in_markdown(whole.title or whole.suite or whole.run)}"]
    for given in offered.decision.recommendations:
        if given.model not in shown.models:
            continue
        cells = [c for c in shown.cells if c.model == given.model]
        told = [c for c in cells if c.baseline or c.id == given.pick or _mark(standing, c) == MARKS["frontier"]]
        name = f"**{in_markdown(given.model)}**: " if len(whole.models) > 1 else ""
        parts.append(f"{name}{in_markdown(say(offered.candidates, offered.limits, given).pick, _SENTENCE)}")
        lines = [_row(["scheme", *(_headed(c, displays[c.key]) for c in columns)]), _row(["---", *(["---:"] * len(columns))])]
        for cell in told[:MOST_IN_SUMMARY]:
            label = in_markdown(_label(cell))
            entries = [in_markdown(_entry(cell, c, displays[c.key])) for c in columns]
            lines.append(_row([f"**{label}**" if cell.id == given.pick else label, *entries]))
        left = len(cells) - len(told[:MOST_IN_SUMMARY])
        parts += ["\n".join(lines), *([f"{left} more {'cell' if left == 1 else 'cells'} measured."] if left else [])]
    asked = [o for c in shown.cells for o in c.outcomes]
    missing = sum(o.status != OK for o in asked)
    said = f"{missing} of {len(asked)} questions have no answer. " if missing else ""
    parts.append(f"{said}Run {in_markdown(whole.run)}, {in_markdown(whole.started_at[:10])}; in brackets 95 % intervals.")
    return ("\n\n".join(parts) + "\n").encode()


TABLES: dict[str, Callable[[View, View, Choice], bytes]] = {
    "table": text,
    "markdown": markdown,
    "latex": latex,
    "summary": summary,
}
"""Formats for people by name: of the whole view, what was selected of it, and the selection."""


def _columns(view: View, choice: Choice) -> list[Column]:
    return list(view.columns) if choice.metrics else terminal_columns(view)


def _with_displays(view: View, choice: Choice) -> tuple[list[Column], dict[str, Display]]:
    columns = _columns(view, choice)
    return columns, {c.key: column_display(view, c) for c in columns}


def _headed(column: Column, how: Display) -> str:
    title = " ".join((column.metric.short or column.metric.title).split())
    named = f"{title}, {column.subject}" if column.subject else title
    told = how.label in {"", "p"} or title.startswith(how.label.replace("/", " per "))
    return named if told else f"{named} ({how.label})"


def _entry(cell: CellView, column: Column, how: Display) -> str:
    value = cell.values[column.key]
    if value.status != OK:
        return STATUS_WORDS.get(value.status, value.status)
    between = bracket(column, value, how)
    return f"{number(column, value, how)} ({between})" if between else number(column, value, how)


def _label(cell: CellView) -> str:
    return cell.label + (", baseline" if cell.baseline else "") + (", simulated" if cell.simulated else "")


def _mark(standing: Mapping[str, Standing], cell: CellView) -> str:
    stand = standing.get(cell.id)
    return "" if stand is None else MARKS[stand.status]


def _row(entries: Iterable[str]) -> str:
    return f"| {' | '.join(entries)} |"


_TEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#", "%": "\\%", "_": "\\_",
    "^": "\\textasciicircum{}", "~": "\\textasciitilde{}", THIN: "\\,", "\u2212": "$-$", "–": "--", "×": "$\\times$",
    "∞": "$\\infty$", "±": "$\\pm$", "µ": "$\\mu$", "<": "$<$", ">": "$>$", "[": "{[}", "]": "{]}",
}  # fmt: skip


def in_latex(written: str) -> str:
    """A text as it is, in TeX."""
    return "".join(_TEX.get(c, c) for c in plain(" ".join(written.split("\n"))))


def _comment(written: str) -> str:
    return " ".join(plain(written).split())
