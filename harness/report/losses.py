"""What the cells of a model lose, as a decision needs it: with upper limits that hold for all of them at once.

`harness.stats.simultaneous` says how; here its tables become `decide.Loss` rows, and cells that cannot be compared their reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.decide import KINDS, Kind, Loss
from harness.errors import HarnessError
from harness.frontier import Floats
from harness.stats import simultaneous

_NOTHING = (0.0,) * len(simultaneous.CONFIDENCES)


@dataclass(slots=True, kw_only=True)
class FamilyLosses:
    """One kind of loss of one model's cells, by cell id. `alike`: ids of cells that cannot be told apart, both ways."""

    losses: dict[str, Loss] = field(default_factory=dict)
    alike: dict[str, tuple[str, ...]] = field(default_factory=dict)


def of_items(
    baseline: str, tasks: Sequence[tuple[Floats, Sequence[str] | None]], answers: Mapping[str, Sequence[Floats] | str]
) -> dict[Kind, FamilyLosses]:
    """Points and recovery. `tasks`: the baseline's scores [items] and clusters; `answers`: by cell id, its scores of every
    task in the baseline's order, or why it has none."""
    able = [cell for cell, scores in answers.items() if not isinstance(scores, str)]
    absent = {cell: why for cell, why in answers.items() if isinstance(why, str)}
    items = [
        simultaneous.TaskItems(
            base=base, cells=np.stack([answers[cell][place] for cell in able]) if able else np.empty((0, base.size)), clusters=c
        )
        for place, (base, c) in enumerate(tasks)
    ]
    found: dict[Kind, FamilyLosses] = {}
    limits: tuple[Callable[..., simultaneous.Losses], ...] = (simultaneous.points_lost, simultaneous.recovery_lost)
    for kind, limited in zip(KINDS[:2], limits, strict=True):
        try:
            losses = limited(items) if able else None
        except HarnessError as error:
            found[kind] = _family(baseline, [], {**absent, **dict.fromkeys(able, str(error))}, None, unit="items", scale=100.0)
        else:
            found[kind] = _family(baseline, able, absent, losses, unit="items", scale=100.0)
    return found


def of_windows(baseline: str | None, tables: Mapping[str, Floats | str]) -> FamilyLosses:
    """Mean divergence. `tables`: by cell id, the divergences [windows, tokens], NaN where there is none, or why there are
    none."""
    absent = {cell: table for cell, table in tables.items() if isinstance(table, str)}
    rows = {cell: table for cell, table in tables.items() if not isinstance(table, str) and cell != baseline}
    windows = max((len(table) for table in rows.values()), default=0)
    for cell in [cell for cell, table in rows.items() if len(table) != windows]:
        absent[cell] = "other windows were scored than of the others"
        del rows[cell]
    able = list(rows)
    losses = None
    if able:
        finite = {cell: np.isfinite(table) for cell, table in rows.items()}
        sums = np.stack([np.where(finite[cell], rows[cell], 0.0).sum(axis=1) for cell in able])
        losses = simultaneous.mean_divergence(sums, np.stack([finite[cell].sum(axis=1) for cell in able]).astype(np.float64))
    return _family(baseline, able, absent, losses, unit="windows", scale=1.0)


def _family(
    baseline: str | None,
    able: Sequence[str],
    absent: Mapping[str, str],
    losses: simultaneous.Losses | None,
    *,
    unit: str,
    scale: float,
) -> FamilyLosses:
    family = FamilyLosses(losses={cell: Loss(value=None, unit=unit, reason=why) for cell, why in absent.items()})
    if baseline is not None:
        family.losses[baseline] = Loss(
            value=0.0, limits=_NOTHING, critical=_NOTHING, n=0 if losses is None else losses.n, unit=unit
        )
        family.alike[baseline] = ()
    if losses is None:
        return family
    critical = tuple(float(c) for c in losses.critical)
    for place, cell in enumerate(able):
        family.losses[cell] = Loss(
            value=float(losses.values[place]) * scale,
            limits=tuple(float(x) * scale if math.isfinite(x) else None for x in losses.limits[place]),
            critical=critical,
            n=losses.n,
            unit=unit,
        )
        like = [other for at, other in enumerate(able) if at != place and losses.alike[place, at]]
        same = losses.like_baseline[place] and baseline is not None
        family.alike[cell] = (*([baseline] if same and baseline is not None else []), *like)
    if baseline is not None:
        family.alike[baseline] = tuple(cell for place, cell in enumerate(able) if losses.like_baseline[place])
    return family
