"""How far a cell's next-token distributions are from the baseline's: percentiles, histograms against the noise floor, and where
the baseline is sure of itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from harness.metrics.divergence import BUCKETS, KL_FLOOR, KL_MAX, KL_MEAN, bucket, kl_percentile
from harness.report.cells import OK, CellView, Outcome
from harness.report.markup import Markup, el, join
from harness.report.numbers import display, show
from harness.report.pieces import Floats, array, by_model, cells_of, fold, head_of, numeric, square, subjects, table, value_of
from harness.report.section import Section, scheme
from harness.report.svg import MOST_ROWS, Dot, Line, Row, chart, key, short, span, steps
from harness.report.view import View

PERCENTILES = (
    (kl_percentile("median"), "median"),
    (kl_percentile("p90"), "90 %"),
    (kl_percentile("p99"), "99 %"),
    (KL_MAX, "largest"),
)
LEAST, MOST, PER_DECADE = -9, 2, 4
"""The histogram's first and last power of ten in nats, and its bins in each; what is smaller is in the first bin."""
LIMITS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def section(view: View) -> Section | None:
    found = subjects(view, KL_MEAN)
    if not found:
        return None
    blocks = []
    for subject in found:
        made = by_model(view, functools.partial(_block, view, subject=subject))
        blocks += [el("h3", subject), *made] if len(found) > 1 and made else made
    if not blocks:
        return None
    return Section(
        id="divergence",
        nav="Divergence",
        title="Divergence from the baseline, token by token",
        lead="KL divergence of a cell's next-token distribution from the baseline's. A mean hides its tail: most tokens hardly "
        "move, a few move far.",
        body=join(*blocks),
    )


def _block(view: View, model: str, subject: str) -> Markup | None:
    cells = [c for c in cells_of(view, model, baseline=False) if value_of(view, c, KL_MEAN, subject)]
    if not cells:
        return None
    floor = _floor(view, model, subject)
    return join(
        _percentiles(view, cells, subject, floor), _histograms(view, model, cells, subject), _confidence(view, cells, subject)
    )


def _floor(view: View, model: str, subject: str) -> float | None:
    base = view.baseline_of(model)
    found = None if base is None else value_of(view, base, KL_FLOOR, subject)
    return None if found is None else found[0].value


def _nats(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-4 else show(value, "nat", display("nat", [value]))


def _percentiles(view: View, cells: Sequence[CellView], subject: str, floor: float | None) -> Markup | None:
    rows, values, lines = [], [], []
    for cell in cells:
        dots = []
        for number, (metric, name) in enumerate(PERCENTILES):
            known = value_of(view, cell, metric, subject)
            if known is not None and known[0].value > 0:
                values.append(known[0].value)
                dots.append(Dot(value=known[0].value, hue=number, form=number, tip=f"{name}: {_nats(known[0].value)} nats"))
        mean = value_of(view, cell, KL_MEAN, subject)
        rows.append(Row(label=cell.label, text="" if mean is None else f"mean {_nats(mean[0].value)}", dots=dots))
    scale = span([*values, *([floor] if floor else [])], log=True)
    if scale is None:
        return None
    said = "."
    if floor:
        lines.append(Line(value=floor, text="noise floor"))
        said = f"; the dashed line is the noise floor, {_nats(floor)} nats: the mean of the baseline against itself."
    drawn = chart(f"Percentiles of the KL divergence on {subject}, by cell", rows, scale, _tick, lines)
    legend = key([(number, name, number) for number, (_, name) in enumerate(PERCENTILES)])
    note = el("p", f"Nats, on a logarithmic axis{said}", cls="note")
    return join(legend, drawn, note, fold("Table of percentiles", _percentile_table(view, cells, subject)))


def _tick(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _percentile_table(view: View, cells: Sequence[CellView], subject: str) -> Markup:
    metrics = (
        (KL_MEAN, "mean"),
        *PERCENTILES[:2],
        (kl_percentile("p95"), "95 %"),
        PERCENTILES[2],
        (kl_percentile("p99_9"), "99.9 %"),
        PERCENTILES[3],
    )
    shown = [(m, title) for m, title in metrics if any(value_of(view, c, m, subject) for c in cells)]
    rows = [
        el(
            "tr",
            head_of(cell),
            *(
                el("td", "–" if (v := value_of(view, cell, m, subject)) is None else _nats(v[0].value), cls="num")
                for m, _ in shown
            ),
        )
        for cell in cells
    ]
    return table(f"KL divergence on {subject}, nats", ["Cell", *(numeric(title) for _, title in shown)], rows)


# ---- histograms ----


def _asked(cell: CellView, subject: str) -> Outcome | None:
    return next(
        (o for o in cell.outcomes if o.question.subject == subject and any(m.metric == KL_MEAN for m in o.measurements)), None
    )


def _counts(samples: Floats) -> list[float]:
    """Share of the tokens in each bin of log10 of the divergence."""
    finite = samples[np.isfinite(samples)]
    if not finite.size:
        return []
    edges = np.linspace(LEAST, MOST, (MOST - LEAST) * PER_DECADE + 1)
    held = np.clip(np.log10(np.maximum(finite, 1e-300)), LEAST, MOST - 1e-9)
    return [float(x) for x in np.histogram(held, edges)[0] / finite.size]


def _histograms(view: View, model: str, cells: Sequence[CellView], subject: str) -> Markup | None:
    base = view.baseline_of(model)
    asked = None if base is None else _asked(base, subject)
    noise = None if asked is None else array(view, asked, KL_FLOOR)
    floor = [] if noise is None else _counts(noise)
    drawn: list[Markup] = []
    rows = []
    for cell in cells:
        outcome = _asked(cell, subject)
        samples = None if outcome is None else array(view, outcome, KL_MEAN)
        if samples is None:
            continue
        if len(drawn) < MOST_ROWS:
            drawn.append(_histogram(cell.label, _counts(samples), floor))
        finite = samples[np.isfinite(samples)]
        shares = [float((finite > limit).mean()) for limit in LIMITS]
        rows.append(el("tr", head_of(cell), *(el("td", f"{share:.2%}", cls="num") for share in shares)))
    if not drawn:
        return el("p", "The histograms need raw samples, and none are on disk.", cls="muted")
    said = f"Share of tokens by divergence, from 1e{LEAST} to 1e{MOST} nats, logarithmic; what is smaller is in the first bin."
    said += " The line is the noise floor's own histogram." if floor else " This run keeps no samples of a noise floor."
    columns = ["Cell", *(numeric(f"> {_tick(limit)}", "nats") for limit in LIMITS)]
    return join(
        el("h3", "Histograms"),
        el("p", said, cls="note"),
        el("div", *drawn, cls="multiples"),
        fold("Table of shares beyond a divergence", table(f"Share of tokens beyond a divergence on {subject}", columns, rows)),
    )


def _histogram(label: str, counts: Sequence[float], floor: Sequence[float]) -> Markup:
    most = max([*counts, *floor, 0.0])
    paths = [el("path", d=steps(counts, most), cls="mass")]
    if floor:
        paths.append(el("path", d=steps(floor, most), cls="floor"))
    image = el(
        "svg",
        *paths,
        viewBox=f"0 0 {len(counts)} 100",
        preserveAspectRatio="none",
        width="100%",
        height="64",
        role="img",
        aria_label=f"Histogram of the divergence of {label}, logarithmic",
    )
    return el("div", el("span", short(label), cls="small block"), image, cls="multiple")


# ---- by the baseline's confidence ----


def _confidence(view: View, cells: Sequence[CellView], subject: str) -> Markup | None:
    names = [(bucket(low, high), f"{low:g} to {high:g}") for low, high in BUCKETS]
    shown = [(m, title) for m, title in names if any(value_of(view, c, m, subject) for c in cells)]
    if not shown:
        return None
    known = [v[0].value for c in cells for m, _ in shown if (v := value_of(view, c, m, subject)) is not None and v[0].value > 0]
    scale = span(known, log=True)
    rows = []
    for cell in cells:
        squares = []
        for metric, _ in shown:
            found = value_of(view, cell, metric, subject)
            if found is None or found[0].status != OK:
                squares.append(square(None, None, None))
                continue
            strength = 0.0 if scale is None else scale.percent(found[0].value) / 100
            tip = f"n = {found[0].n}" if found[0].n else None
            squares.append(el("td", _nats(found[0].value), cls="num neg", style=f"--a:{strength:.2f}", data_tip=tip))
        rows.append(el("tr", el("th", scheme(view, cell), scope="row"), *squares))
    columns = ["Cell", *(numeric(title) for _, title in shown)]
    title = f"Mean KL divergence by the baseline's confidence on {subject}"
    return join(
        el("h3", "By the baseline's confidence"),
        el(
            "p",
            "Mean divergence in nats by the baseline's top probability. Where it guesses, moves cost little.",
            cls="note",
        ),
        table(title, columns, rows, cls="heat plain"),
    )
