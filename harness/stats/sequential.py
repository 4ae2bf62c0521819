"""Sequential mode: stop scoring a cell as soon as its loss is known to be within the margin, or beyond it.

Items arrive in one random order shared by all cells (`shared_order`). After every item two bettors, who may never go into
debt, hold a wealth:

- one bets against "the loss is at least the margin"; once its wealth reaches 1 / alpha the verdict is WITHIN;
- one bets against "the loss is at most the margin"; once its wealth reaches 1 / beta the verdict is WORSE.

If a bettor's hypothesis is true its wealth is a nonnegative supermartingale, so by Ville's inequality it *ever* reaches 1 /
alpha with probability at most alpha, however often one looks and whenever one stops (Waudby-Smith & Ramdas, "Estimating means
of bounded random variables by betting", JRSS B 2024, sections 3 and 4; section 5 for sampling a finite pool without
replacement). That holds for items that are an exchangeable sample; how much is bet changes only how many items a verdict
takes. The bets are Kelly's for a loss of 0 (of twice the margin), that is margin / flip rate with the flip rate estimated
from past items, in a mixture of fractions of it, so that truths nearer to the margin are found as well.

Each verdict has its own error rate; for a matrix of them give `e_within` / `e_worse` to `e_benjamini_hochberg`.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from harness.errors import BadInput
from harness.stats.intervals import LEVEL, Floats, Interval, normal_quantile
from harness.stats.roots import crossing

CHANGES_NUMBERS = True
"""What it decides cannot be recomputed: it says how many items are scored."""

ORDER_SALT = "quant-harness item order 1"
FRACTIONS = np.array([0.5, 1.0, 2.0])
WEIGHTS = np.array([0.15, 0.7, 0.15])
"""Bets as fractions of Kelly's, and the share of the starting wealth that each gets."""
PRIOR_FLIP_RATE = 0.05
PRIOR_ITEMS = 25.0
"""Before any item the flip rate is taken for 5 %, with the weight of 25 items."""
LARGEST_BET = 0.9
"""As a share of the bet that could lose everything."""
BET_LIMITS = (LARGEST_BET, 0.25)
"""The same of the two halves of an interval's bettor."""
_CHUNK_VALUES = 2_000_000


class Verdict(enum.Enum):
    """What the sequential test says of a cell."""

    WITHIN = "within the margin"
    WORSE = "worse than the margin"
    UNDECIDED = "not decided by these items"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdict and what it rests on. `items`: items used for it (all that were fed, if undecided). `difference`: cell minus
    baseline over those items; it is biased by the stopping, so print `anytime_interval` with it. `e_within`, `e_worse`: the
    bettors' wealth, i.e. the evidence against a loss of at least (at most) the margin."""

    verdict: Verdict
    items: int
    difference: float
    e_within: float
    e_worse: float
    margin: float
    alpha: float
    beta: float


class SequentialTest:
    """Feed it the changes of a cell's items (cell minus baseline: -1, 0 or 1) in the shared order, in batches of any size.

    `margin`: the loss of accuracy that matters, as a fraction (0.01). `alpha`: largest chance of WITHIN when the loss is at
    least the margin. `beta`: largest chance of WORSE when the loss is at most the margin. `pool`: number of items (clusters)
    in the whole task, when the verdict is to be about these very items (what would the full run say?) rather than about all
    questions of their kind; it then becomes certain with the last one.
    """

    def __init__(self, *, margin: float, alpha: float = 0.05, beta: float = 0.05, pool: int | None = None) -> None:
        _check(margin, alpha, beta)
        self.margin, self.alpha, self.beta = margin, alpha, beta
        self._bank = _Bank(rows=1, margin=margin, pool=pool)
        self._items = 0.0
        self._change = 0.0
        self._decision = self._decide(Verdict.UNDECIDED, 0.0, 0.0)

    @property
    def decision(self) -> Decision:
        return self._decision

    def update(self, changes: ArrayLike, sizes: ArrayLike | None = None, *, largest: int = 1) -> Decision:
        """The decision after these items too. A made decision stands; items after it are ignored.

        With clusters (items of one passage) feed one value per cluster: `changes` its net change, `sizes` its number of
        items, and `largest` the size of the largest cluster of the task, the same in every call.
        """
        change = np.atleast_1d(np.asarray(changes, dtype=np.float64))
        size = np.ones_like(change) if sizes is None else np.atleast_1d(np.asarray(sizes, dtype=np.float64))
        if size.shape != change.shape or change.ndim != 1:
            raise BadInput(f"changes and sizes are two equally long rows, not shapes {change.shape} and {size.shape}")
        if not np.all((np.abs(change) <= size) & (size <= largest) & (size > 0)):
            raise BadInput("an item changes by -1, 0 or 1 (a cluster by at most its size, and no cluster exceeds `largest`)")
        if self._decision.verdict is not Verdict.UNDECIDED or change.size == 0:
            return self._decision
        within, worse = self._bank.play(change[None, :] / largest, size[None, :] / largest)
        verdicts, steps = _first_crossing(within, worse, self.alpha, self.beta)
        used = int(steps[0])
        self._items += float(size[:used].sum())
        self._change += float(change[:used].sum())
        self._decision = self._decide(Verdict(_CODES[int(verdicts[0])]), float(within[0, used - 1]), float(worse[0, used - 1]))
        return self._decision

    def _decide(self, verdict: Verdict, log_within: float, log_worse: float) -> Decision:
        return Decision(
            verdict=verdict,
            items=round(self._items),
            difference=self._change / self._items if self._items else 0.0,
            e_within=_exp(log_within),
            e_worse=_exp(log_worse),
            margin=self.margin,
            alpha=self.alpha,
            beta=self.beta,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replays:
    """Verdicts of many replays: `verdicts` [replays] and the `items` [replays] that each took (all, if undecided)."""

    verdicts: tuple[Verdict, ...]
    items: NDArray[np.int64]

    def share(self, verdict: Verdict) -> float:
        return sum(v is verdict for v in self.verdicts) / len(self.verdicts)


def replay(changes: ArrayLike, *, margin: float, alpha: float = 0.05, beta: float = 0.05, pool: int | None = None) -> Replays:
    """Runs the sequential test on every row of `changes` [replays, items] (values -1, 0, 1), vectorised over the rows."""
    _check(margin, alpha, beta)
    table = np.asarray(changes)
    if table.ndim != 2 or table.size == 0:
        raise BadInput(f"replays are a table [replays, items], not an array of shape {table.shape}")
    rows, items = table.shape
    codes, taken = np.zeros(rows, dtype=np.int64), np.full(rows, items, dtype=np.int64)
    step = max(1, _CHUNK_VALUES // (rows * FRACTIONS.size))
    bank, running = _Bank(rows=rows, margin=margin, pool=pool), np.arange(rows)
    for start in range(0, items, step):
        part = np.asarray(table[running, start : start + step], dtype=np.float64)
        verdicts, used = _first_crossing(*bank.play(part, np.ones_like(part)), alpha, beta)
        done = verdicts != 0
        codes[running[done]], taken[running[done]] = verdicts[done], start + used[done]
        running = running[~done]
        if running.size == 0:
            break
        bank.keep(~done)
    return Replays(verdicts=tuple(Verdict(_CODES[int(code)]) for code in codes), items=taken)


def shared_order(item_ids: Sequence[str]) -> NDArray[np.intp]:
    """The fixed random order in which all cells score a task's items: by SHA-256 of the salted id.

    It depends on the ids alone: not on the cell, the run, the file's order, nor on which other items there are.
    """
    if len(set(item_ids)) != len(item_ids):
        raise BadInput("item ids must be distinct to be ordered")
    keys = [hashlib.sha256(f"{ORDER_SALT}\0{item}".encode()).digest() for item in item_ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.intp)


def anytime_interval(
    changes: ArrayLike, level: float = LEVEL, *, sizes: ArrayLike | None = None, largest: int = 1, least: int = -1
) -> Interval:
    """Interval for the mean change per item (cell - baseline) that holds at whatever moment one stopped: all means that neither
    of two bettors has ever refuted (Waudby-Smith & Ramdas 2024, hedged capital with predictable bets, section 4.2).

    `changes` [items]: -1, 0 or 1, in the order they were scored; `least` is the smallest that can occur (0 for an accuracy in
    place of a change: items are 0 or 1). With clusters as in `SequentialTest.update`: one net change per cluster, `sizes` its
    items, `largest` the task's largest; n is the number of items. Wider than a fixed-size interval: that is the price of looking.
    """
    given = np.asarray(changes, dtype=np.float64)
    counts = np.ones_like(given) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if given.ndim != 1 or given.size == 0 or given.shape != counts.shape:
        raise BadInput("an interval needs a row of at least one change, with a size each where they are of clusters")
    if not np.all((given <= counts) & (given >= least * counts) & (counts <= largest) & (counts > 0)):
        raise BadInput(f"an item changes by {least} to 1 (a cluster by at most its size, and no cluster exceeds `largest`)")
    change, size = given / largest, counts / largest
    t = np.arange(1, change.size + 1)
    past_mean = np.concatenate([[0.0], (np.cumsum(change) / (np.cumsum(size) + 1))[:-1]])
    spread = PRIOR_ITEMS * PRIOR_FLIP_RATE + np.cumsum((change - past_mean * size) ** 2)
    variance = np.concatenate([[PRIOR_FLIP_RATE], (spread / (PRIOR_ITEMS + t))[:-1]])
    bar = math.log(2 / (1 - level))
    # Bets of about one standard error of the mean so far, and at most a share of what could lose everything if the mean is that
    # asked about: half of the wealth dares much, as pays where few items flip, half little. Both bettors' wealth falls as that
    # mean nears the data, so that what is not refuted is an interval.
    bets = np.sqrt(2 * bar / (variance * t * np.log1p(t)))

    def refuted(mean: float, side: float) -> float:
        worst_loss = mean - least if side > 0 else 1.0 - mean
        gain = side * (change - mean * size)
        daring, careful = (np.cumsum(np.log1p(np.minimum(bets, share / max(worst_loss, 1e-9)) * gain)) for share in BET_LIMITS)
        return float((np.logaddexp(daring, careful) - math.log(2)).max()) - bar

    mean, lowest = float(given.sum() / counts.sum()), float(least)
    low = lowest if refuted(lowest, 1.0) <= 0 else crossing(lambda m: refuted(m, 1.0), lowest, 1.0, xtol=1e-6)
    high = 1.0 if refuted(1.0, -1.0) <= 0 else crossing(lambda m: refuted(m, -1.0), lowest, 1.0, xtol=1e-6)
    return Interval(value=mean, low=min(low, mean), high=max(high, mean), n=round(counts.sum()), level=level)


def unpaired_items(accuracy: float, margin: float, *, alpha: float = 0.05, power: float = 0.95) -> int:
    """Items *per model* that a one-sided z-test on two independent samples needs to show, with this power, that two models of
    equal accuracy differ by less than the margin: the yardstick of the sequential mode."""
    z = normal_quantile(1 - 2 * alpha) + normal_quantile(2 * power - 1)
    return math.ceil(z * z * 2 * accuracy * (1 - accuracy) / margin**2)


def paired_items(flip_rate: float, margin: float, *, alpha: float = 0.05, power: float = 0.95) -> int:
    """Items that the same test needs, of fixed size, on paired answers of which this share flips."""
    z = normal_quantile(1 - 2 * alpha) + normal_quantile(2 * power - 1)
    return math.ceil(z * z * flip_rate / margin**2)


class _Bank:
    """Wealth of both bettors in `rows` parallel games, as logarithms per bet size [rows, fractions].

    An item's (cluster's) payoff is x = change + margin * size, scaled so that it lies in [-(1 - margin), 1 + margin]; its
    mean is 0 exactly when the loss is the margin. With a pool, the mean of the items still to come is known under the
    hypothesis.
    """

    def __init__(self, *, rows: int, margin: float, pool: int | None) -> None:
        self.margin, self.pool, self.seen = margin, pool, 0
        self.squares: Floats = np.zeros(rows)
        self.payoff: Floats = np.zeros(rows)
        self.size: Floats = np.zeros(rows)
        start = np.log(WEIGHTS)[None, :].repeat(rows, axis=0)
        self.within, self.worse = start.copy(), start.copy()

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Drops the games that are over."""
        self.squares, self.payoff, self.size = self.squares[rows], self.payoff[rows], self.size[rows]
        self.within, self.worse = self.within[rows], self.worse[rows]

    def play(self, change: Floats, size: Floats) -> tuple[Floats, Floats]:
        """Log wealth of both bettors after each of these items, [rows, items] each; every bet uses earlier items only."""
        x = change + self.margin * size
        earlier = self.seen + np.arange(x.shape[1])
        if self.pool is not None and self.seen + x.shape[1] > self.pool:
            raise BadInput(f"more items than the pool of {self.pool} holds")
        squares, payoff, sizes = (
            start[:, None] + np.cumsum(values, axis=1)
            for start, values in ((self.squares, x * x), (self.payoff, x), (self.size, size))
        )
        variance = (PRIOR_ITEMS * (PRIOR_FLIP_RATE + self.margin**2) + squares - x * x) / (PRIOR_ITEMS + earlier)
        drift = self.margin * (1.0 + sizes - size) / (1.0 + earlier)
        expected: Floats = np.zeros_like(x)
        if self.pool is not None:
            expected = -(payoff - x) / (self.pool - earlier)
            drift = drift * self.pool / (self.pool - earlier)
        kelly = drift / variance
        within = self._wealth(self.within, kelly, x - expected, 1 - self.margin + expected)
        worse = self._wealth(self.worse, kelly, expected - x, 1 + self.margin - expected)
        self.within, self.worse = within[:, -1].copy(), worse[:, -1].copy()
        self.squares, self.payoff, self.size = squares[:, -1], payoff[:, -1], sizes[:, -1]
        self.seen += x.shape[1]
        totals = special.logsumexp(within, axis=2), special.logsumexp(worse, axis=2)
        if self.pool == self.seen:
            # All is known: the hypothesis that the sum refutes is refuted for certain.
            totals[0][:, -1] = np.where(self.payoff > 1e-9, np.inf, np.minimum(totals[0][:, -1], 0.0))
            totals[1][:, -1] = np.where(self.payoff < -1e-9, np.inf, np.minimum(totals[1][:, -1], 0.0))
        return totals

    @staticmethod
    def _wealth(start: Floats, kelly: Floats, gain: Floats, worst_loss: Floats) -> Floats:
        limit = LARGEST_BET / np.maximum(worst_loss, 1e-6)
        bets = np.minimum(kelly[:, :, None] * FRACTIONS, limit[:, :, None])
        growth = np.log1p(bets * gain[:, :, None])
        # Where even the worst items to come could not make the hypothesis true, it is refuted for certain.
        growth[worst_loss < -1e-9] = np.inf
        return np.asarray(start[:, None, :] + np.cumsum(growth, axis=1), dtype=np.float64)


_CODES = {0: Verdict.UNDECIDED, 1: Verdict.WITHIN, 2: Verdict.WORSE}


def _first_crossing(within: Floats, worse: Floats, alpha: float, beta: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Code of the verdict and number of items used [rows]; 0 and all items where no bettor has won yet."""
    is_within, is_worse = within >= -math.log(alpha), worse >= -math.log(beta)
    over = is_within | is_worse
    first = np.argmax(over, axis=1)
    decided = over[np.arange(over.shape[0]), first]
    codes = np.where(decided, np.where(is_within[np.arange(over.shape[0]), first], 1, 2), 0)
    return codes.astype(np.int64), np.where(decided, first + 1, over.shape[1]).astype(np.int64)


def _check(margin: float, alpha: float, beta: float) -> None:
    if not (0 < margin < 1 and 0 < alpha < 0.5 and 0 < beta < 0.5):
        raise BadInput(f"margin must lie in 0..1, alpha and beta in 0..0.5, not {margin}, {alpha}, {beta}")


def _exp(log_wealth: float) -> float:
    return math.exp(log_wealth) if log_wealth < 709.0 else math.inf
