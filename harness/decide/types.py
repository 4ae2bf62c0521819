"""What a decision is made of and what it says, as plain data: `spec.to_json` of these is what the page's script reads and writes.

A number that is not there is None and has a reason; nothing here is NaN or infinite. Bytes, seconds and tokens are plain; a loss
is in the unit of its kind (`KINDS`), positive where the cell is worse than its baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["pp", "recovery", "kl"]
"""How a loss is stated: `pp`, points of mean accuracy over the tasks; `recovery`, percent of the baseline's accuracy that is
lost; `kl`, mean divergence from the baseline in nats."""

KINDS: tuple[Kind, ...] = ("pp", "recovery", "kl")

CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
"""The one-sided confidences that limits of a loss are given at, and may be asked for."""

Prefer: TypeAlias = Literal["size", "speed", "quality"]
PREFERENCES: tuple[Prefer, ...] = ("size", "speed", "quality")

LimitName: TypeAlias = Literal["method", "bits", "size", "memory", "tpot", "ttft", "loss"]
State: TypeAlias = Literal["left out", "missing", "simulated", "over", "not shown"]
"""`left out`: the reader's choice of methods or bits. `missing`: no number, so that the limit is not shown to be kept.
`simulated`: what the limit is about is not the scheme's. `over`: the number is above the limit. `not shown`: the loss is not
shown to be below the limit with the confidence asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A measured cost with its 95 % interval where it has one, or None and the reason."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a cell loses against its baseline. `limits`: upper limits at `CONFIDENCES`, simultaneous over all cells of the
    model, so that they hold for whichever cell is picked; None where the data support none. `critical`: how many standard
    errors each limit lies above the value, about. `n`: what was sampled, in `unit` (items or windows)."""

    value: float | None
    limits: tuple[float | None, ...] = (None, None, None, None)
    critical: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    n: int = 0
    unit: str = "items"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A part of the KV cache: so many bytes for each token of each sequence, of the last `window` tokens (None: of all)."""

    bytes_per_token: float
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak memory at any context x batch. `measured` bytes at `context` tokens x `batch` sequences; elsewhere it is derived
    as the larger of `load` and `fixed` + the cache. `fixed`: the larger peak of prefill and decode without its cache, so
    weights and what computing takes. `derivable`: empty, or why no other context can be derived. `measured` None: `reason`
    says why."""

    measured: float | None
    context: int = 0
    batch: int = 0
    load: float = 0.0
    fixed: float = 0.0
    cache: tuple[Cache, ...] = ()
    derivable: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds for each output token (`tpot`) and to the first one (`ttft`), at a measured shape."""

    prompt: int
    new: int
    batch: int
    tpot: Number
    ttft: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A cell as a decision sees it. `losses` and `alike` by kind; `alike`: the ids of the model's cells (the baseline among
    them) whose loss cannot be told from this one's."""

    id: str
    label: str
    model: str
    method: str
    bits: float
    baseline: bool
    simulated: bool
    size: Number
    memory: Memory
    speeds: tuple[Speed, ...] = ()
    losses: Mapping[str, Loss] = field(default_factory=dict)
    alike: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader can live with; None is no limit. Memory counts at `context` tokens x `batch` sequences (None: as measured).
    `max_loss` is in the unit of `loss`, and has to be shown with `confidence`, one of `CONFIDENCES`. `models`, `methods`, `bits`:
    what may be picked (None: anything). `binary`: sentences write GiB instead of GB."""

    max_memory: float | None = None
    context: int | None = None
    batch: int | None = None
    max_size: float | None = None
    max_tpot: float | None = None
    max_ttft: float | None = None
    loss: Kind = "pp"
    max_loss: float | None = None
    confidence: float = 0.95
    prefer: Prefer = "size"
    models: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    bits: tuple[float, ...] | None = None
    binary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """A limit that a cell does not keep. `allowed`: the limit. `needed`: what it would have to be at least (a loss: above that);
    None where no number is known, and `reason` says why."""

    limit: LimitName
    state: State
    allowed: float | None = None
    needed: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One cell under the limits. Its costs as they count there: `memory` (`derived` from another context), `tpot`, `ttft` at the
    measured shape `prompt` + `new` x `batch` (None: none fits), `loss` with its upper limit `loss_high`."""

    id: str
    qualifies: bool
    size: float | None
    memory: float | None
    derived: bool
    tpot: float | None
    ttft: float | None
    prompt: int | None
    new: int | None
    batch: int | None
    loss: float | None
    loss_high: float | None
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What would have to give for a cell to qualify. `gain`: what it would be worth: `pick`, it would be picked; `quality`,
    it loses less than the pick beyond the noise. `obstacles`: the limits, each with what it would have to be."""

    id: str
    gain: Literal["pick", "quality"]
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """A cell that would be picked if its loss were shown to be below the limit, and how many `more` items (or windows:
    `unit`), with the `n` there are, would show it with a probability of 80 %, its loss being what it is estimated to be."""

    id: str
    more: int
    n: int
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer for one model. `order`: the cells that qualify, best first; `pick` and `runner_up` are its first two.
    `verdicts`: every cell of the model, in the order given. `alike`: cells whose loss cannot be told from the pick's,
    qualifying or not; between those one chooses by cost. `changes` and `settle`: nearest first."""

    model: str
    pick: str | None
    runner_up: str | None
    order: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    alike: tuple[str, ...]
    changes: tuple[Change, ...]
    settle: tuple[Settle, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One recommendation for each model that may be picked from, in the order in which the models appear: losses of two
    models are against two baselines, and no number here compares them."""

    recommendations: tuple[Recommendation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentences:
    """A recommendation in words: `pick` in one sentence, then what is left to say; empty where there is nothing. `fails`:
    for each cell that does not qualify, by id, why."""

    pick: str
    runner_up: str
    alike: str
    changes: tuple[str, ...]
    settle: tuple[str, ...]
    fails: Mapping[str, str]
