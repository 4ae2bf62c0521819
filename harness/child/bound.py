"""Bound on the answers: is a cell as near to the baseline as so many bits bring it?

The reload check compares an artifact with itself, the ledger its tensors with the source's; neither sees a library that rounds
badly. So every cell answers 512 fixed tokens, and its mean KL(baseline || cell) is held against two limits:

- 8 bits and more: at most 0.05 nats, or ten times the noise floor where that is more. Beyond it the cell is a typed failure, or
  marked where its row says that it is known to be worse (`Method.worse`).
- fewer bits: at most ten times what plain rounding of the same weights to the same bits gives, in groups of the cell's size.
  Beyond it the cell is marked, in every record that the marked process answers, with words.

The tokens are the first of the embedded held-out text, as the source's tokenizer cuts them; ids that the model's embedding does
not have are replaced by seeded random ones. The floor is the baseline's own divergence under another legitimate execution. The
baseline writes all of that once, where others find it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness import recipes, reference
from harness.engines.base import BASELINE_FACTS, Loaded, Partial, Rerun, WeightsAlone
from harness.errors import BadAnswers, Nonfinite, Unsupported
from harness.files import write_atomically
from harness.formats import config_json
from harness.methods import METHODS
from harness.models import build, corpora
from harness.models.rounding import in_groups
from harness.recipes import UNKNOWN_BITS
from harness.spec import Cell, Quantized, digest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TOKENS, WINDOW = 512, 128
LIMIT_NATS, FLOORS, ROUNDINGS = 0.05, 10.0, 10.0
GROUP = 64
"""Of plain rounding, where a scheme has no groups that are named."""

FACTS = "bound.json"
VERSION = 1
"""Raised when other tokens, or another plain rounding, are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Plain rounding to so many bits; `group` weights of a row share a scale, -1: all."""

    bits: float
    group: int

    @property
    def name(self) -> str:
        return f"{self.bits:g} bits, groups of {self.group}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the baseline leaves for the other cells: its tokens, its noise floor, and the KL of plain roundings by their names, in
    nats (None where its model has no layer that could be rounded)."""

    windows: list[list[int]]
    floor: float
    roundings: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How far a cell is from the baseline on the fixed tokens, in nats, and the limit that it is held against (None:
    none is known).
    `said`: what is to be said of it; empty where it is within the limit."""

    kl: float
    floor: float
    limit: float | None
    said: str


def rounding(cell: Cell) -> Rounding | None:
    """The plain rounding that a cell is compared with; None at 8 bits and more. The bits of a mixture are a target with scales
    and zero points: it is compared with rounding to what they leave for the codes."""
    said = cell.scheme.options.get("group_size", GROUP)
    group = said if isinstance(said, int) else GROUP
    if cell.scheme.mixture is not None:
        return Rounding(bits=round(min(8.0, max(1.0, cell.bits - (16 + cell.bits) / max(group, 16))), 2), group=group)
    return None if cell.bits >= 8 or cell.bits == UNKNOWN_BITS else Rounding(bits=cell.bits, group=group)


def bounded(cell: Cell, baseline: Cell) -> bool:
    """Whether a cell's answers can be held against its baseline's: both hold this model's weights, and the baseline's
    are plain. A model that was trained further is another one, whose distance says nothing of its rounding."""
    plain = METHODS[baseline.method].unquantized and isinstance(baseline.origin, Quantized)
    row = METHODS[cell.method]
    made = cell.origin.kind == "given" or row.weights is not None
    return plain and made and row.trains is None and cell.origin.kind != "served" and not cell.model.random


def known(folder: Path) -> Kept | None:
    try:
        return Kept(**json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def complete(folder: Path, wanted: Sequence[Rounding]) -> bool:
    """Whether the baseline has left its answers, and these roundings."""
    kept = known(folder)
    return kept is not None and all(each.name in kept.roundings for each in wanted)


def keep(
    folder: Path, wanted: Sequence[Rounding], loaded: Loaded, fresh: Iterator[Loaded], *, model_dir: Path, cache: Path
) -> None:
    """Has the baseline leave its answers in `folder`, and the KL of the roundings that are missing there. `fresh` gives the
    baseline loaded anew, to be rounded."""
    kept = known(folder)
    if kept is None:
        windows = _windows(loaded, model_dir, cache)
        if not (folder / BASELINE_FACTS).is_file():
            loaded.store_baseline(windows, folder)
        floor = 0.0
        if isinstance(loaded, Rerun):
            floor = _mean(list(loaded.rerun_windows(windows, folder)[1]))[0]
        kept = Kept(windows=windows, floor=floor if math.isfinite(floor) else 0.0)
    for each in wanted:
        if each.name not in kept.roundings:
            model = next(fresh)
            kl = None
            if _round(cast("PreTrainedModel", model.model), each):
                kl = _mean(list(model.score_windows(kept.windows, folder)))[0]
            kept.roundings[each.name] = kl if kl is not None and math.isfinite(kl) else None
    write_atomically(folder / FACTS, json.dumps(asdict(kept)), lasting=True)


def hold(cell: Cell, loaded: Loaded, folder: Path, *, fault: Callable[[], str]) -> Answers | None:
    """The cell's answers held against the limit; None where they cannot be compared. BadAnswers beyond what 8 bits and more
    allow, Nonfinite where most are not finite: `fault` says whose that is, and is asked only then."""
    kept = known(folder)
    if kept is None or (isinstance(loaded, Partial) and loaded.lacks("distributions") is not None):
        return None
    try:
        score = loaded.score_weights if isinstance(loaded, WeightsAlone) else loaded.score_windows
        kl, lost = _mean(list(score(kept.windows, folder)))
    except Unsupported:  # another vocabulary, say: the probes say so of each question
        return None
    if 2 * lost > TOKENS:
        raise Nonfinite(f"{lost} of {TOKENS} fixed tokens are answered with NaN or infinity; {fault()}")
    lost_said = f"{lost} of {TOKENS} fixed tokens are answered with NaN or infinity" if lost else ""
    plain, own = rounding(cell), recipes.of(cell.scheme) is not None
    if own and cell.bits == UNKNOWN_BITS:
        return Answers(kl=kl, floor=kept.floor, limit=None, said=lost_said)
    if plain is not None:
        ours = kept.roundings.get(plain.name)
        limit = None if ours is None else max(ROUNDINGS * ours, FLOORS * kept.floor)
        said = ""
        if limit is not None and kl > limit:
            said = (
                f"its answers are {kl:.3g} nats from the baseline's, more than ten times the {ours:.3g} of plain rounding to "
                f"{plain.bits:g} bits in groups of {plain.group}"
            )
            said += "; its recipe may give layers fewer bits" if own else ""
        return Answers(kl=kl, floor=kept.floor, limit=limit, said=said or lost_said)
    limit = max(LIMIT_NATS, FLOORS * kept.floor)
    if kl <= limit:
        return Answers(kl=kl, floor=kept.floor, limit=limit, said=lost_said)
    said = (
        f"its answers are {kl:.3g} nats from the baseline's on {TOKENS} fixed tokens, where {cell.bits:g} bits bring them within "
        f"{limit:.3g}"
    )
    worse = METHODS[cell.method].worse.get(cell.bits)
    if cell.scheme.options.get("mixed") or str(cell.scheme.options.get("type")).endswith(" mixed"):
        worse = "a mixture, of which only most layers have these bits"
    if own:
        worse = "made by a recipe of one's own, which may give layers fewer bits"
    if worse is None:
        raise BadAnswers(f"{said}; the artifact holds other weights than the source's, or its kernel computes something else")
    return Answers(kl=kl, floor=kept.floor, limit=limit, said=f"{said}: {worse}")


def held_file(artifact: Path, cell: Cell, folder: Path) -> Path:
    """Where an artifact keeps how its answers were held against a baseline's, for one way of running."""
    return artifact / f"answers-{digest([folder.name, cell.identity(), VERSION])[:12]}.json"


def _windows(loaded: Loaded, model_dir: Path, cache: Path) -> list[list[int]]:
    """The fixed tokens: windows of equal length with TOKENS targets in all."""
    text = config_json.text_part(config_json.read(model_dir))
    context = config_json.integer(text, "max_position_embeddings", "n_positions", "seq_length", "max_seq_len", default=WINDOW)
    targets = next(size for size in (128, 64, 32, 16, 8, 4, 2, 1) if size <= max(1, context - 1))
    table = cast("PreTrainedModel", loaded.model).get_input_embeddings()
    rows = int(cast("Tensor", table.weight).shape[0])
    words = reference.HELDOUT_TEXT.read_text(encoding="utf-8")[:20000]
    draw = random.Random(0)
    given = map(int, corpora.token_ids(loaded.tokenizer, words, cache / "tokens"))
    ids = [id_ if id_ < rows else draw.randrange(rows) for id_ in given]
    count = TOKENS // targets
    ids += [draw.randrange(rows) for _ in range(count * (targets + 1) - len(ids))]
    return [ids[i * (targets + 1) : (i + 1) * (targets + 1)] for i in range(count)]


def _mean(scores: Sequence[object]) -> tuple[float, int]:
    """Mean KL over the tokens that are finite, and how many are not."""
    import numpy as np

    kl = np.concatenate([getattr(score, "kl") for score in scores]).astype(np.float64)  # noqa: B009 - all have one
    finite = kl[np.isfinite(kl)]
    return (float(finite.mean()) if finite.size else math.inf), int(kl.size - finite.size)


def _round(model: PreTrainedModel, each: Rounding) -> bool:
    """Rounds the weights of a model's decoder in place to the nearest step of their groups, symmetric around zero, as `rtn` does;
    False where it has none."""
    import torch
    from transformers.pytorch_utils import Conv1D

    weights = [(linear.weight, False) for linear in build.decoder_linears(model).values()]
    weights += [(module.weight, True) for module in model.modules() if isinstance(module, Conv1D)]
    weights += [(p, False) for name, p in model.named_parameters() if p.dim() == 3 and "experts" in name]
    with torch.no_grad():
        for weight, transposed in weights:
            rows = weight.t() if transposed else weight
            flat = in_groups(rows.reshape(-1, rows.shape[-1]), bits=each.bits, group=each.group)
            rounded = flat.reshape(rows.shape)
            weight.copy_(rounded.t() if transposed else rounded)
    return bool(weights)
