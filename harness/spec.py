"""The vocabulary as types: model, scheme, cell, question, measurement, failure, record.

Standard library only, because children import this inside foreign environments that have none of our dependencies.
All types are frozen, slotted and keyword-only. `to_json` / `canonical` / `digest` turn any of them into plain data, into the
one canonical byte string, and into its SHA-256; two equal questions always have equal digests. `decode.decode` reads plain data
back into any of them.

The lines of a run file are types too: `RunHeader` with its `RunContext`, `PlanRecord`, `EnvironmentRecord`, `Record` (store.py
writes and reads them). Their fields stand in the order in which they are written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

SCHEMA = 4
"""Version of records and run files. Another one is refused in words.

1: a cell was a model and a scheme, and a scheme's options held those of running. 2 (2026-11-28): a cell is a model, an origin and
a way of running, and has a label. 3 (2026-11-29): each line proves itself (proof.py). 4 (2026-11-30): the last line of a
finished run holds a table of its values (series.py)."""

Json: TypeAlias = Any
"""Plain data: None, bool, int, float, str, list, dict with str keys."""

OptionValue: TypeAlias = bool | int | float | str | None
"""What an option of a method can be set to."""

DATA_SETS = "data_sets"
"""The option of a question that names the hub's data sets it is made of, `OWNER/NAME@REVISION`, each with its commit (`hub` until
that is known)."""

MIXTURE = "mixture"
"""The option of a scheme that mixes widths by layer to reach its bits."""

FailureKind = Literal["oom", "timeout", "crash", "nonfinite", "unsupported", "environment", "input", "error"]

Better = Literal["lower", "higher", "neither"]

Axis = Literal["quality", "cost"]
"""What a metric says of a cell when cells are chosen between: what is kept, or what is paid."""

Samples = Literal["losses", "tokens", "items"]
"""What a measurement's raw samples are, and with that how the report resamples them and compares them with the baseline's.

- `losses`: float [windows, tokens], negative log-likelihoods in nats. The value is the exponential of their mean; it is compared
  token by token, as the logarithm of the ratio.
- `tokens`: float [windows, tokens]. The value is their mean; it is about the baseline already and is compared with nothing.
- `items`: JSON {"items": [{"id", "correct", "cluster"}]}, the cluster where items share a passage. The value is the mean of
  `correct`; it is compared item by item: difference, flips, exact test, recovery, and the mean over all subjects.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A source checkpoint: a hub id at a revision, or a local folder. `random`: a shape (`path` is its config) filled with random
    weights, which has a speed and a size and no quality. `file`: one GGUF file of the repository. `commit`: what the revision was
    when the suite was planned, None where nobody could say. `packed`: weights are read as the plain ones that they stand for."""

    name: str
    repo: str | None = None
    path: str | None = None
    revision: str | None = None
    random: bool = False
    file: str | None = None
    commit: str | None = None
    packed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGrid:
    """The grid on which a model's weights lie that were quantized once and are held dequantized: codes of `bits` bits, a scale
    (and, where it is not `symmetric`, an offset) for each group of `group_size` weights of a row. `format` is its name there."""

    format: str
    bits: int
    group_size: int
    symmetric: bool

    def warning(self, model: str) -> str:
        """What it means for the numbers of a model, in one sentence."""
        kind = "symmetric" if self.symmetric else "asymmetric"
        flattered = f"{self.bits}-bit schemes in groups of {self.group_size}"
        return (
            f"The weights of {model} lie on a {self.bits}-bit grid ({self.format}: {kind}, groups of {self.group_size}), because "
            f"they were quantized before: {'' if self.symmetric else 'asymmetric '}{flattered} can meet it again and are "
            "flattered, and every loss here is one against weights that have lost something already."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """method + bits + options, e.g. gptq at 4 bits with group_size 128: how the weights are stored. `options` holds all that
    decides the stored weights, defaults filled in, nothing else; how an engine runs them is `Running`."""

    method: str
    bits: float
    options: Mapping[str, Json] = field(default_factory=dict)

    @property
    def mixture(self) -> Mapping[str, Json] | None:
        """How the widths of a mixture are chosen, whose `bits` are a target: `from`, `widths`, `version`. None: one width."""
        said: Mapping[str, Json] | None = self.options.get(MIXTURE)
        return said

    def identity(self) -> dict[str, Json]:
        """What decides the stored weights, as plain data."""
        return {"method": self.method, "bits": self.bits, "options": to_json(self.options)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """Weights that are made here, from the cell's model, by the scheme's method (an unquantized row casts or links them)."""

    scheme: Scheme
    kind: Literal["quantized"] = "quantized"

    def identity(self) -> Json:
        return {"kind": self.kind, **self.scheme.identity()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A checkpoint that somebody quantized. `scheme` is what its own header says: format, bits, group size. `checkpoint` is the
    cell's model itself where the suite does not say what it was made of."""

    scheme: Scheme
    checkpoint: Model
    kind: Literal["given"] = "given"

    def identity(self) -> Json:
        return {"kind": self.kind, **self.scheme.identity(), "checkpoint": to_json(self.checkpoint)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model behind a running server. `scheme` holds the bits that its operator names (0: not known); `model` is the server's
    name for it. `token_env` names the environment variable with the token: how one may ask changes no answer.

    `serve`: the command that starts the server, with its placeholders; '' for one that somebody else runs. `artifact`: the label
    of the model's cell whose artifact it serves. `wait_seconds`: how long its start may take."""

    scheme: Scheme
    url: str
    model: str
    token_env: str = ""
    serve: str = ""
    artifact: str = ""
    wait_seconds: float = 600.0
    kind: Literal["served"] = "served"

    def identity(self) -> Json:
        own = {"serve": self.serve, "artifact": self.artifact} if self.serve else {}
        return {"kind": self.kind, **self.scheme.identity(), "url": self.url, "model": self.model, **own}


Origin: TypeAlias = Quantized | Given | Served
"""Where a cell's weights come from. `identity()` is what decides them, as plain data."""

OVERLAP = "calibration_overlap"
"""The fact of an answer about a corpus that says how much of what the cell was calibrated on the corpus holds, 0 to 1."""

OriginKind = Literal["quantized", "given", "served"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How the weights are run: the engine, the type that keys and values are kept in, the engine's execution mode, and its other
    settings by name. An empty text leaves the choice to the engine. It is part of a question's key and not of the artifact: cells
    that differ in this alone share one."""

    engine: str
    kv: str = ""
    execution: str = ""
    flags: Mapping[str, OptionValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One square of the matrix: a model, where its weights come from, and how they are run. `label` is the short name that people
    see for origin and running (unique within a suite and model); it is no part of any key."""

    model: Model
    origin: Origin
    running: Running
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", f"{self.method} {self.bits:g}-bit")

    @property
    def name(self) -> str:
        return f"{self.model.name} / {self.label}"

    @property
    def scheme(self) -> Scheme:
        """How the weights are stored, as far as that is known."""
        return self.origin.scheme

    @property
    def method(self) -> str:
        return self.origin.scheme.method

    @property
    def bits(self) -> float:
        return self.origin.scheme.bits

    def identity(self) -> Json:
        """What tells two cells apart, as plain data."""
        return {"model": to_json(self.model), "origin": self.origin.identity(), "running": to_json(self.running)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the report shows a metric unasked. A number is a place there: the lowest comes first; None is not shown there.

    Places leave gaps, so that a new metric fits between two. In `terminal`, metrics with the same place stand in for each
    other: of those that were measured, the one with the lowest place on its axis is shown.
    """

    axis: int | None = None  # in the menu of its axis; axes without a place follow there in column order
    headline: int | None = None  # among the columns that the table of all cells shows first
    ladder: int | None = None  # in the menus of the charts by bits
    terminal: int | None = None  # among the columns of the table at the end of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A named number and all that is to be known of it: the report, the frontier, the exports and the terminal ask the row, and
    hold no names of metrics that are measured. Raises ValueError where fields contradict each other.

    `definition` is the default definition's name; a measurement may carry a more exact one. `description` says to people what
    the number means; metrics without one are folded away in the glossary.
    """

    name: str
    title: str
    unit: str  # decides how numbers are written, see report/numbers.py
    better: Better
    definition: str
    scale: Literal["linear", "log"] = "linear"  # of a chart's axis
    description: str = ""
    short: str = ""  # heading of a narrow column, with line breaks; the title where there is none
    axis: Axis | None = None  # the side of the frontier on which cells may be compared by it; None: on neither
    places: Places = Places()
    signed: bool = False  # a change: positive numbers are written with a plus
    when_simulated: bool = True  # whether a cell whose weights are held dequantized may show it
    samples: Samples | None = None  # None: values are compared by their intervals only
    monotone: bool = False  # never worse with more bits of one scheme: where it is, beyond the noise, the report warns
    floor: str = ""  # the metric that is its noise floor, measured on the baseline's own cell

    def __post_init__(self) -> None:
        if self.axis is not None and self.better == "neither":
            raise ValueError(f"metric {self.name!r}: an axis needs a better direction")
        if self.axis is None and self.places.axis is not None:
            raise ValueError(f"metric {self.name!r}: has a place on an axis, and no axis")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one probe asks of one cell: `subject` is the corpus, the task or the shape ('' where there is only one);
    `options` is everything that changes the answer, as plain data (it is part of the record's key)."""

    probe: str
    subject: str
    options: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A number with its definition, interval and count. `low`/`high`: 95 % interval, None where none is defined.
    `blob` names the raw samples in the store (`<sha256>.<ext>`), or, before storing, a file in the probe's outbox."""

    metric: str
    value: float
    definition: str
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    blob: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no number: kind, the phase it happened in, a message for people, the tail of the child's log."""

    kind: FailureKind
    phase: str
    message: str
    log_tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of a child process: its wall time and peak bytes by kind (e.g. {"host_anonymous": 123, ...})."""

    name: str
    seconds: float
    peak_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A probe's success: measurements, plus facts that explain them (plain data: kernels, shapes, counts, warnings)."""

    measurements: tuple[Measurement, ...]
    facts: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One probe's outcome for one cell: an `answer` or a `failure`, exactly one of them.

    `key` is the digest of the exact question (weights, method config and version, tokenizer, task or corpus, probe
    version, seed, numerics); `context` is the digest of the conditions (host, packages, commit). Resume joins on both.
    `environment` and `artifact` name what was installed and which bytes were measured ('' where none were, and in run files from
    before 2026-11-29).
    """

    key: str
    context: str
    cell: Cell
    question: Question
    probe_version: str
    answer: Answer | None = None
    failure: Failure | None = None
    simulated: bool = False
    phases: tuple[Phase, ...] = ()
    environment: str = ""
    artifact: str = ""
    started_at: str = ""
    seconds: float = 0.0
    schema: int = SCHEMA

    @property
    def status(self) -> str:
        """`ok`, or the failure's kind."""
        return "ok" if self.failure is None else self.failure.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCellRecord:
    """A planned cell as a run file holds it. The estimates are of its artifact: bits per weight, and bytes (None until the model
    is here)."""

    cell: Cell
    questions: tuple[Question, ...]
    baseline: bool
    estimated_bpw: float | None = None
    estimated_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationText:
    """What the `cells` (labels) of a model are calibrated on: `samples` rows of `length` tokens of a text, and in words which
    text that is and why it is this one. `overlap`: by scored corpus, the share of the text that is scored as well
    (models/overlap.py); None where the plan cannot know it."""

    model: str
    text: str
    words: str
    why: str
    samples: int
    length: int
    cells: tuple[str, ...]
    overlap: Mapping[str, float | None]

    @property
    def tokens(self) -> int:
        return self.samples * self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedRecord:
    """A square that cannot exist, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedProbe:
    """A probe of another package as a run file keeps it: a report is made where the package is not. `package`: its name and
    version."""

    title: str
    metrics: tuple[Metric, ...]
    package: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """What a run was asked: all that decides what the report must draw. `suite` is the suite file as checked, `baseline` a
    scheme's label, `commands` make the run again, `weights` are the digests of the models by name, `probes` those of other
    packages, `source_grids` the grids of models that were quantized before, by name, `calibrated_on` the texts that cells are
    calibrated on, `notes` what is to be said of it as a whole. `only`: keys or names of the questions that were asked by
    themselves (run/only.py); such a run is no whole one of its suite, whatever it holds."""

    suite: Mapping[str, Json] = field(default_factory=dict)
    baseline: str = ""
    cells: tuple[PlannedCellRecord, ...] = ()
    unsupported: tuple[UnsupportedRecord, ...] = ()
    commands: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, OfferedProbe] = field(default_factory=dict)
    source_grids: Mapping[str, SourceGrid] = field(default_factory=dict)
    calibrated_on: tuple[CalibrationText, ...] = ()
    notes: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The conditions of a run. `commit` is None outside a repository; `source` is the digest of the code that can change a
    number, `plugins` that of each other package whose rows were asked for, by its name and version. `machine` and `packages` are
    there for people: `host` and `packages_digest` stand for them in the digest."""

    host: str
    python: str
    packages_digest: str
    harness: str
    commit: str | None
    source: str
    device: str
    threads: int
    machine: Mapping[str, Json]
    packages: Mapping[str, str]
    plugins: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Equal for runs whose records may stand in one file."""
        return digest({f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in {"machine", "packages"}})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """The first line of a run file. `started_at` is ISO 8601 in UTC."""

    schema: int = SCHEMA
    run: str
    started_at: str
    context: RunContext
    context_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRecord:
    """What was installed in an environment other than the main one; records name it by `digest`."""

    name: str
    digest: str
    python: str
    packages: Mapping[str, str]


def to_json(value: object) -> Json:
    """Dataclasses, mappings and sequences to plain data. Non-finite floats become strings ("nan", "inf", "-inf"),
    so that every line is strict JSON and nothing is lost."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} is not plain data: {value!r}")


def canonical(value: object) -> bytes:
    """The one byte string of a value: sorted keys, no spaces, UTF-8; integral floats equal their integers."""
    return json.dumps(
        _integral(to_json(value)), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: object) -> str:
    """SHA-256 of `canonical(value)` as 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _integral(value: Json) -> Json:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {k: _integral(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_integral(v) for v in value]
    return value
