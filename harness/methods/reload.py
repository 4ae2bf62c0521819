"""Reload check: does the artifact, loaded from disk in a fresh process, answer as its weights say?

Formats exist that load without an error and answer garbage. So every quantizing child keeps a few answers beside the weights, and
every child that loads the artifact compares before it measures anything.

`write` stores, for 32 positions, the 8 most probable next tokens with their log-probabilities. They are the answers of the
artifact's own packed weights, unpacked by this project's code and run in float32, or, where a format is the library's own, of
the weights that the quantizing library holds in memory. `check` answers the same positions with the loaded model and takes the
divergence KL(kept || loaded) over nine outcomes (those 8 tokens, and everything else), in nats. Lumping outcomes together can
only lower a divergence (log-sum inequality; Cover & Thomas, Elements of Information Theory, 2.7), so what is over the limit
here is over it in full.

The limit: kernels differ in the order of their sums and in bf16 rounding, which moves the answers a little; how much is
measured when writing, by running the same weights in bf16 (`floor`). A sound reload stays within a few floors; wrong zero
points, wrong order of columns or unread tensors cost tenths of nats to nats. `LIMIT_FLOORS` times the floor, and at least
`LIMIT_NATS`, lies between the two by more than a factor of ten on either side.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast, runtime_checkable

from harness.methods import layer_errors
from harness.methods.base import QuantizeRequest
from harness.models.build import State, dense, unpacked_dtype

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FILE = "reload_check.json"

ROWS, LENGTH, TOP = 2, 17, 8

LIMIT_FLOORS = 20.0

LIMIT_NATS = 2e-3


Rows: TypeAlias = Sequence[Sequence[int]]
"""Rows of token ids."""


@runtime_checkable
class AnswersItself(Protocol):
    """A model of another engine than transformers, as the check asks it."""

    def log_probabilities(self, rows: Rows) -> Tensor:
        """As `answers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswers:
    """The file of the check: `by` answered `rows`, whose most probable next tokens (`ids`) had these natural `log_probabilities`,
    lists [positions, TOP]; the same weights in bf16 answer `floor` nats away."""

    by: str
    rows: list[list[int]]
    floor: float
    ids: list[list[int]]
    log_probabilities: list[list[float]]


def rows_for(vocabulary: int, calibration: Rows | None) -> list[list[int]]:
    """The rows to compare on: the beginnings of two calibration rows, or seeded random tokens where there are none."""
    if calibration:
        chosen = [list(row[:LENGTH]) for row in (calibration[0], calibration[-1])]
        if min(map(len, chosen)) == LENGTH:
            return chosen
    draw = random.Random(0)
    return [[draw.randrange(vocabulary) for _ in range(LENGTH)] for _ in range(ROWS)]


def vocabulary(model: PreTrainedModel) -> int:
    """Rows of the model's embedding, which a model with parts for other inputs does not name at the top of its config."""
    return cast("Tensor", model.get_input_embeddings().weight).shape[0]


def write(
    model: PreTrainedModel,
    rows: Rows,
    out_dir: Path,
    *,
    by: str,
    noisy: Callable[[], PreTrainedModel] | None = None,
    floor: float = 0.0,
) -> None:
    """Stores the answers of `model` on `rows` (equal lengths) in `out_dir`.

    `by` says who answered. `noisy` is called after that and returns the same model in bf16: its distance is the floor;
    without it, `floor` (nats) is taken.
    """
    top = answers(model, rows).topk(TOP, dim=-1)
    kept = KeptAnswers(
        by=by,
        rows=[list(row) for row in rows],
        floor=floor,
        ids=top.indices.tolist(),
        log_probabilities=top.values.tolist(),
    )
    if noisy is not None:
        kept = replace(kept, floor=distance(kept, answers(noisy(), rows)))
    rounded = replace(
        kept,
        floor=_seven_digits(kept.floor),
        log_probabilities=[[_seven_digits(value) for value in position] for position in kept.log_probabilities],
    )
    (out_dir / FILE).write_text(json.dumps(asdict(rounded)), encoding="utf-8")


def skip(out_dir: Path, reason: str) -> None:
    """Stores that there is nothing to compare (an unquantized artifact), so that a missing file is never taken for that."""
    (out_dir / FILE).write_text(json.dumps({"skip": reason}), encoding="utf-8")


def check(model: object, artifact_dir: Path) -> str | None:
    """None if the loaded `model` answers as the artifact's weights say, else what is wrong. Takes what a method's `load` returns:
    a transformers causal LM, or a model that `AnswersItself`."""
    try:
        data = json.loads((artifact_dir / FILE).read_text(encoding="utf-8"))
        if "skip" in data:
            return None
        kept = KeptAnswers(**data)
    except (OSError, ValueError, TypeError):
        return f"the artifact has no readable {FILE}, so nothing shows that it loads as it was written; quantize it again"
    limit = max(LIMIT_NATS, LIMIT_FLOORS * kept.floor)
    apart = distance(kept, answers(model, kept.rows))
    if apart <= limit:
        return None
    return (
        f"the reloaded model does not answer as its weights say: {apart:.3g} nats from the answers of {kept.by}, "
        f"where {limit:.3g} is allowed for rounding; this format loads, but as another model"
    )


def answers(model: object, rows: Rows) -> Tensor:
    """Log-probabilities [positions, vocabulary] (float32, CPU) after each token but the last of each row."""
    import torch

    if isinstance(model, AnswersItself):
        return model.log_probabilities(rows)
    lm = cast("PreTrainedModel", model)
    device = next(p.device for p in (*lm.parameters(), *lm.buffers()))
    ids = torch.tensor([list(row[:-1]) for row in rows], dtype=torch.long, device=device)
    with torch.inference_mode():
        logits: Tensor = lm(input_ids=ids, use_cache=False).logits
    return torch.log_softmax(logits.float().flatten(0, 1), dim=-1).cpu()


def distance(kept: KeptAnswers, given: Tensor) -> float:
    """Mean over positions of KL(kept || given) in nats over `TOP` tokens and the rest; infinity if not finite. `given`:
    log-probabilities [positions, vocabulary]."""
    import torch

    if not bool(torch.isfinite(given).any(dim=-1).all()):
        return float("inf")
    ids = torch.tensor(kept.ids)
    if int(ids.max()) >= given.shape[-1] or ids.shape[0] != given.shape[0]:
        return float("inf")
    p = _with_rest(torch.tensor(kept.log_probabilities, dtype=torch.float64).exp())
    q = _with_rest(given.double().gather(1, ids).exp())
    terms = torch.where(p > 0, p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-30).log()), torch.zeros_like(p))
    result = float(terms.sum(dim=-1).mean())
    return max(result, 0.0) if result == result else float("inf")


def _with_rest(listed: Tensor) -> Tensor:
    """Probabilities [n, TOP] completed by what is left of 1 (rounding may leave a little less than nothing)."""
    import torch

    return torch.cat([listed, (1 - listed.sum(dim=-1, keepdim=True)).clamp_min(1e-9)], dim=-1)


def _seven_digits(value: float) -> float:
    """What float32 carries; more only make the file larger."""
    return float(f"{value:.7g}")


def write_dense(request: QuantizeRequest, state: State, by: str) -> None:
    """Stores the answers of the source's architecture with the dense weights `state`, and its bf16 distance as the floor; and how
    far each layer's weight is from the source's (layer_errors.py).

    `by` says "float32"; where `unpacked_dtype` is bf16 it is stored as "bfloat16".
    """
    import torch

    dtype = unpacked_dtype(sum(t.numel() for t in state.values()))
    wide = dtype == torch.float32
    layer_errors.write(request.out_dir, layer_errors.of(request.model_dir, state))
    model = dense(request.model_dir, state, dtype)
    rows = rows_for(vocabulary(model), request.calibration)
    write(model, rows, request.out_dir, by=by if wide else by.replace("float32", "bfloat16"), noisy=lambda: model.bfloat16())
