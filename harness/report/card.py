"""The model card of an exported artifact, made from the record: what it is, how it was made and measured, on what, and its bytes.

`card` is pure: the same record gives the same text. Every name in it is hostile (a suite, a hub or another machine chose it), so
the front matter is written by the YAML library and the rest by `markdown`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import yaml

from harness.artifact import ArtifactRecord, Licence
from harness.report import markdown
from harness.report.cells import ABSENT, BASELINE, NOT_RUN, OK, CellView, Column, plain_table
from harness.report.markdown import text
from harness.report.numbers import DASH, display, show, show_interval, with_unit
from harness.report.provenance import NAMES, PACKAGES
from harness.report.view import View
from harness.spec import OVERLAP, Given, Model, digest, to_json

FILE = "README.md"
"""Where a hub looks for the card of a model."""

LONG = 8000
"""Characters of a list of packages or instruction sets."""

PROSE = 2000
"""Characters of a definition, a mark or a reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of serving the folder: the runtime, what to type inside the folder, and what is to be known of that."""

    runtime: str
    language: Literal["sh", "python"]
    code: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What the record does not hold: the hub's name of the library that reads the folder ('' where it has none), how it is
    served, the licence of the source model (None: not known), and whether the artifact was made again, with the same bytes."""

    library: str
    ways: tuple[Way, ...]
    licence: Licence | None
    rebuilt: bool = False


def card(view: View, cell: CellView, artifact: ArtifactRecord, release: Release) -> str:
    """The text of README.md for the artifact of a cell."""
    parts = [
        f"---\n{_front(cell, release)}---",
        f"# {text(cell.model)}, {text(cell.label)}",
        _what(view, cell, artifact, release),
        "## Serve it",
        *_serve(release),
        "## What was measured",
        *_measured(view, cell),
        "## How it was made",
        *_made(view, cell),
        "## How and on what it was measured",
        *_conditions(view, cell),
        "## Its bytes",
        *_bytes(view, cell, artifact, release),
    ]
    return "\n\n".join(parts) + "\n"


# ---- front matter ----

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _front(cell: CellView, release: Release) -> str:
    """What the hub reads of a card, as YAML. What is not a hub's word there is left out."""
    source = _source(cell)
    said: dict[str, object] = {}
    if release.licence is not None:
        licence = release.licence
        said["license"] = licence.identifier
        said |= {f"license_{k}": v for k, v in (("name", licence.name), ("link", licence.link)) if v}
    if source.repo is not None and _REPO.fullmatch(source.repo):
        said["base_model"] = source.repo
        itself = isinstance(cell.cell.origin, Given) and cell.cell.origin.checkpoint == source
        if not _unquantized(cell) and not itself:
            said["base_model_relation"] = "quantized"
    if release.library:
        said["library_name"] = release.library
    said = {name: markdown.line(value) for name, value in said.items()}
    said["pipeline_tag"] = "text-generation"
    tags = ["quant-harness", cell.cell.method, f"{cell.cell.bits:g}-bit"]
    said["tags"] = [tag for tag in tags if _TAG.fullmatch(tag)]
    written: str = yaml.safe_dump(said, sort_keys=False, allow_unicode=False, default_flow_style=False, width=10_000)
    return written


def _source(cell: CellView) -> Model:
    """The model that the artifact was made of: of a checkpoint that was given, the model that it stands for."""
    return cell.cell.model


def _adapted(cell: CellView) -> bool:
    return "rank" in cell.cell.scheme.options


def _unquantized(cell: CellView) -> bool:
    return cell.cell.bits >= 16


# ---- what it is ----


def _what(view: View, cell: CellView, artifact: ArtifactRecord, release: Release) -> str:
    given = isinstance(cell.cell.origin, Given)
    made = (
        "measured as it was given" if given else "unquantized" if _unquantized(cell) else f"quantized by {text(cell.cell.method)}"
    )
    if cell.trained:
        made = f"trained further, and {made}" if not _adapted(cell) else f"{made}, with an adapter that was trained beside it"
    size = sum(file.bytes for file in artifact.files)
    lines = [f"{text(cell.model)} at {cell.cell.bits:g} bits, {made}, and measured by quant-harness: {_amount(size)} in all."]
    if cell.baseline:
        lines.append("It is the baseline of its run: what the other cells were compared with.")
    if cell.simulated:
        lines.append(
            "**Simulated**: the runtime that measured it holds these weights dequantized. Quality and size are those of the "
            "scheme; its memory and speed were not measured, because they would have been those of 16-bit weights."
        )
    if cell.cell.model.random:
        lines.append("**Its weights are random**: they have a size and a speed, and say nothing.")
    lines += [f"**Marked**: {text(_private(mark), PROSE)}" for mark in cell.marks]
    grid = view.source_grids.get(cell.model)
    if grid is not None:
        lines.append(f"**Note**: {text(grid.warning(cell.model), PROSE)}")
    if release.licence is None:
        lines.append(
            "**The licence of the source model was not found beside its weights.** Look it up before you pass this on; it holds "
            "for a quantized model, too."
        )
    return "\n\n".join(lines)


def _serve(release: Release) -> list[str]:
    parts = ["In this folder:"] if release.ways else ["No runtime is known for it."]
    for way in release.ways:
        parts += [f"**{text(way.runtime)}**: {text(way.note)}", markdown.code(way.language, way.code)]
    return parts


# ---- numbers ----


def _measured(view: View, cell: CellView) -> list[str]:
    baseline = None if cell.baseline else view.baseline_of(cell.model)
    shown = [c for c in view.columns if cell.values[c.key].status == OK]
    if not shown:
        return ["Nothing: no question has an answer."]
    head = ["Metric", "On", "Value", "95 % interval", "n"] + ([f"{text(baseline.label)} (baseline)"] if baseline else [])
    rows = [_row(column, cell, baseline) for column in shown]
    parts = [markdown.table(head, rows, numeric=[False, False, True, True, True, True])]
    silent = _not_measured(view, cell)
    if silent:
        parts += ["Not measured:", "\n".join(silent)]
    definitions = {
        f"- **{text(c.metric.title)}** ({text(c.metric.definition, PROSE)}). {text(c.metric.description, PROSE)}".rstrip()
        for c in shown
    }
    intervals = (
        "Intervals are 95 %. Windows of text and items of tasks are resampled whole; comparisons with the baseline are paired."
    )
    return [*parts, "### Definitions", "\n".join(sorted(definitions)), intervals]


def _row(column: Column, cell: CellView, baseline: CellView | None) -> list[str]:
    value, metric = cell.values[column.key], column.metric
    how = display(metric.unit, [value.value])
    number = text(with_unit(show(value.value, metric.unit, how, signed=metric.signed), how))
    between = show_interval(value.low, value.high, metric.unit, how, value=value.value, signed=metric.signed)
    squares = [text(metric.title), text(column.subject), number, between, f"{value.n:,}" if value.n else ""]
    if baseline is not None:
        theirs = baseline.values[column.key]
        squares.append(text(with_unit(show(theirs.value, metric.unit, how), how)) if theirs.status == OK else DASH)
    return squares


def _not_measured(view: View, cell: CellView) -> list[str]:
    """What was asked and has no number, with the reason, each reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for column in view.columns:
        value = cell.values[column.key]
        asked = any((o.question.probe, o.question.subject) == (column.probe, column.subject) for o in cell.outcomes)
        if value.status not in (OK, ABSENT, BASELINE) and (asked or value.status != NOT_RUN) and not column.derived:
            reasons.setdefault((value.status, value.reason), []).append(column.title)
    return [
        f"- {text(', '.join(titles), PROSE)}: {text(status)}, {text(_private(why), PROSE)}"
        for (status, why), titles in reasons.items()
    ]


# ---- how and on what ----


def _made(view: View, cell: CellView) -> list[str]:
    origin, model = cell.cell.origin, _source(cell)
    rows = [("Source model", _place(model)), ("Weights of the source", view.weights.get(cell.model, ""))]
    if isinstance(origin, Given):
        rows += [("Checkpoint", f"{origin.checkpoint.name} ({_place(origin.checkpoint)})")]
        rows += [("Weights of the checkpoint", view.weights.get(origin.checkpoint.name, ""))]
    rows += [("Method", cell.cell.method), ("Bits", f"{cell.cell.bits:g}")]
    rows += [(name, _option(value)) for name, value in cell.cell.scheme.options.items() if name != "calibration"]
    rows += [(cell.reading, words) for words in _calibrated_on(view, cell)]
    return [_facts(rows)]


def _place(model: Model) -> str:
    if model.random:
        return "random weights in the shape of a configuration"
    if model.repo is None:
        return "a local folder"
    parts = [model.repo + (f"/{model.file}" if model.file else ""), *([f"commit {model.commit}"] if model.commit else [])]
    return ", ".join(parts)


def _calibrated_on(view: View, cell: CellView) -> list[str]:
    """The text, why it is this one, and how much of it is scored as well."""
    said = []
    for each in view.calibrated_on:
        if each.model == cell.model and cell.label in each.cells:
            said.append(f"{each.samples:,} rows of {each.length:,} tokens, {each.words} ({each.why})")
            shares = {
                o.question.subject: o.facts[OVERLAP] for o in cell.outcomes if isinstance(o.facts.get(OVERLAP), (int, float))
            }
            said += [f"{share:.1%} of it is in the scored text {subject}" for subject, share in shares.items()]
    return said


def _option(value: object) -> str:
    return {True: "yes", False: "no", None: "none"}[value] if isinstance(value, (bool, type(None))) else str(value)


def _conditions(view: View, cell: CellView) -> list[str]:
    context = view.context
    machine = plain_table(context.get("machine"))
    running = cell.cell.running
    settings = {"keys and values": running.kv, "execution": running.execution, **running.flags}
    rows: list[tuple[str, object]] = [
        ("Engine", ", ".join([running.engine, *(f"{name} {_option(value)}" for name, value in settings.items() if value != "")])),
        ("Kernels", _kernels(cell)),
        ("quant-harness", ", commit ".join(str(v) for v in (context.get("harness"), context.get("commit")) if v)),
        ("Run", view.run),
        ("Started", view.started_at),
        ("Device", context.get("device")),
        ("Threads", context.get("threads")),
        ("Python", context.get("python")),
        *((NAMES.get(key, key), _plain(key, value)) for key, value in machine.items() if key != "python"),
    ]
    packages = plain_table(context.get("packages"))
    main = ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)
    rows += [("Packages", main), ("All packages (digest)", context.get("packages_digest"))]
    used = {o.record.environment for o in cell.outcomes if o.record is not None}
    for environment in view.environments:
        if environment.digest in used:
            rows.append(
                (f"Environment {environment.name}", ", ".join(f"{n} {v}" for n, v in sorted(environment.packages.items())))
            )
    parts = [_facts(rows)]
    if view.commands:
        parts += [
            "Measured by, and to be repeated with:",
            markdown.code("sh", "\n".join(markdown.line(_private(command)) for command in view.commands)),
        ]
    return parts


_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/'\",:;()]+/)+([^\s/'\",:;()]*)")


def _private(said: str) -> str:
    """A text without the folders of the machine that wrote it: of a path its last part is left. A card may be published."""
    return _PATH.sub(r"\1", said)


def _plain(key: str, value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and key.endswith("bytes"):
        return _amount(int(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(key, each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(key, each) for each in value)
    return _option(value)


def _kernels(cell: CellView) -> str:
    """What ran: module, op and stored type of the quantized layers, as the engine told it."""
    kernels = (plain_table(plain_table(outcome.facts.get("engine")).get("kernels")) for outcome in cell.outcomes)
    return "; ".join(f"{count} x {name}" for name, count in next(filter(None, kernels), {}).items())


# ---- bytes ----


def _bytes(view: View, cell: CellView, artifact: ArtifactRecord, release: Release) -> list[str]:
    records = sorted((o.record for o in cell.outcomes if o.record is not None), key=lambda record: record.key)
    copied = (
        "These files were made again after the ones that were measured had left the cache, and have the same bytes."
        if release.rebuilt
        else "These files are copies of the ones that were measured."
    )
    rows = [("Artifact", artifact.digest), ("Record", digest(to_json(records))), ("Run", view.run)]
    files = [[text(f.name), f"{f.bytes:,}", text(f.sha256)] for f in artifact.files]
    return [
        f"{copied} The digest of the artifact stands in the run file beside each number above; it is the SHA-256 of the list of "
        "files below, and that of the record the SHA-256 of the cell's records, both as canonical JSON.",
        _facts(rows),
        markdown.table(["File", "Bytes", "SHA-256"], files, numeric=[False, True, False]),
    ]


def _facts(rows: Sequence[tuple[str, object]]) -> str:
    return markdown.table(["", ""], [[text(name), text(value, LONG)] for name, value in rows if value not in (None, "")])


def _amount(size: int) -> str:
    how = display("B", [size])
    return with_unit(show(size, "B", how), how)
