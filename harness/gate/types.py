"""What a gate says of two runs, as types: squares that are compared, what was found of each, and the report as a whole.

Nothing here decides anything. `join.py` pairs squares, `judge.py` fills `Finding`s, the rooms of output draw a `GateReport`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["regressed", "improved", "within noise", "missing", "failed", "new", "not comparable"]
"""`missing`: BASE has a number and CANDIDATE was not asked or has none planned. `failed`: CANDIDATE was asked and has no number.
`new`: only CANDIDATE has it. None of missing, failed and not comparable is a pass."""

Kind = Literal["items", "losses", "tokens", "exact", "fenced"]
"""How a square is compared. `items`: a paired exact test on the same items. `losses`, `tokens`: paired by window. `exact`: any
difference counts. `fenced`: latency and memory, against the fence of their own history and against the run's own baseline."""

Against = Literal["base", "accepted"]
"""Which stored run a finding compares with: the one that was named, or the one that was last accepted."""

Cause = Literal["", "regression", "stale baseline", "flaky", "machine"]
"""What asking once more showed of an alarm: it stands; the baseline moved as well; it was not seen again; the machine moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """What a person would call the same in two runs: a model's name, a scheme, a way of running, and a metric of a subject with
    its definition. `identity` is the digest of the first three, `label` the scheme's short name, `baseline` whether the cell is
    what the others of its model are compared with."""

    model: str
    label: str
    identity: str
    metric: str
    title: str
    subject: str
    definition: str
    unit: str
    baseline: bool = False

    @property
    def cell(self) -> str:
        return f"{self.model} / {self.label}"

    @property
    def what(self) -> str:
        """The metric and its subject in words."""
        return f"{self.title}, {self.subject}" if self.subject else self.title

    @property
    def name(self) -> str:
        return f"{self.cell}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A stored number with its 95 % interval and count; `unit` is the square's."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An item whose answer changed. `won`: it is right now and was wrong."""

    task: str
    item: str
    won: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstToken:
    """A token at which a cell is furthest from its baseline, with the text around it. `kl` in nats, `earlier` what it was in the
    other run; probabilities of the true token, the baseline's (`p_base`) and the cell's (`p`). None where it is not kept."""

    before: str
    token: str
    after: str
    kl: float
    earlier: float | None = None
    p_base: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one square, or of all tasks of a cell together.

    `change`, with `low` and `high` (95 %), is oriented: positive is worse, in `change_unit` ("points" of accuracy, "nat", "share"
    for relative changes, "" for exact ones). `p` is one-sided, in the direction in which it moved, and `adjusted` what
    multiplicity makes of it, to be compared with alpha (None where no test is made). `threshold` is what the change had to
    exceed, in the same unit, and `threshold_from` says in words where it comes from. `factor`: the change as a multiple of its
    own noise, the half width of its interval; None without one.
    `keys` are those of the candidate's records that it rests on (several for the mean of tasks), which `run --only` takes."""

    square: Square
    kind: Kind
    verdict: Verdict
    against: Against = "base"
    before: Figure | None = None
    after: Figure | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    change_unit: str = ""
    p: float | None = None
    adjusted: float | None = None
    threshold: float | None = None
    threshold_from: str = ""
    factor: float | None = None
    reason: str = ""
    keys: tuple[str, ...] = ()
    flips: tuple[Flip, ...] = ()
    tokens: tuple[WorstToken, ...] = ()  # of an alarm of a divergence
    muted: str = ""  # why an alarm of this square is not counted, from the policy
    cause: Cause = ""  # only after asking once more

    @property
    def alarm(self) -> bool:
        """Whether it turns the gate red: worse, not muted, and not shown to be something else when it was asked once more."""
        return self.verdict == "regressed" and not self.muted and self.cause in ("", "regression")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunName:
    """A run as the gate's outputs name it. `finished`: everything planned has an outcome. `asked`: what `run` was given, a
    built-in suite's name or a path; '' where nothing says so."""

    path: str
    run: str
    suite: str
    started_at: str
    commit: str | None
    host: str
    finished: bool
    asked: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs between the conditions or the inputs of two runs: a possible cause. `what`: "package torch", "commit",
    "weights of MODEL", "driver"; the two values as text, "" where there is none."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """A gate's outcome. `findings` in plan order, alarms included; `differences` from BASE; `notes` are sentences about the whole
    (a run that is not finished, damage, a baseline that moved). `tests`: how many tests the alarm rate was spread over, `alpha`
    that rate: the chance of any false alarm in a night at most. `commands`: what asks each alarm again, by square name."""

    base: RunName
    candidate: RunName
    accepted: RunName | None
    findings: tuple[Finding, ...]
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    tests: int = 0
    alpha: float = 0.0
    commands: Mapping[str, str] = field(default_factory=dict)
    confirmed: bool = False  # whether alarms were asked once more

    @property
    def alarms(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.alarm)

    @property
    def unproven(self) -> tuple[Finding, ...]:
        """What is no pass and no alarm: missing, failed, not comparable."""
        return tuple(f for f in self.findings if f.verdict in ("missing", "failed", "not comparable"))

    @property
    def green(self) -> bool:
        """Nothing is worse, and nothing that BASE had is missing or failed, which no policy mutes. What cannot be compared does
        not turn a gate red, and is named: it is counted as no pass."""
        return not self.alarms and not any(f.verdict in ("missing", "failed") for f in self.findings)

    def count(self, verdict: Verdict) -> int:
        return sum(f.verdict == verdict for f in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """One earlier night of one square, for fences and trends: its value, and the same run's baseline's."""

    started_at: str
    run: str
    value: float
    baseline: float | None
    machine: str  # digest of the machine: only equal ones are compared


History = Mapping[tuple[str, str, str, str], tuple[Past, ...]]
"""Past nights of a square, oldest first, by (square identity, metric, subject, definition)."""
