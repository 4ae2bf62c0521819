"""Reload check: does the artifact, loaded from disk in a fresh process, answer as its weights say?

Formats exist that load without an error and answer garbage. So every quantizing child keeps a few reference answers beside the
weights, and every child that loads the artifact compares before it measures anything.

`write` stores, for 32 positions, the 8 most probable next tokens of the reference model with their log-probabilities.
The reference is the artifact's own packed weights, unpacked by this project's code and run in float32, or, where a format is
the library's own, the weights that the quantizing library holds in memory. `check` answers the same positions with the loaded
model and takes the divergence KL(reference || loaded) over nine outcomes (those 8 tokens, and everything else), in nats.
Lumping outcomes together can only lower a divergence (log-sum inequality; Cover & Thomas, Elements of Information Theory,
2.7), so what is over the limit here is over it in full.

The limit: kernels differ in the order of their sums and in bf16 rounding, which moves the answers a little; how much is
measured when writing, by running the same reference in bf16 (`floor`). A sound reload stays within a few floors; wrong
zero points, wrong order of columns or unread tensors cost tenths of nats to nats. `LIMIT_FLOORS` times the floor, and at
least `LIMIT_NATS`, lies between the two by more than a factor of ten on either side.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.methods.base import QuantizeRequest
from harness.models.build import dense, reference_dtype
from harness.spec import Json

FILE = "reload_check.json"

ROWS, LENGTH, TOP = 2, 17, 8

LIMIT_FLOORS = 20.0

LIMIT_NATS = 2e-3


def rows_for(vocabulary: int, calibration: Sequence[Sequence[int]] | None) -> list[list[int]]:
    """The rows to compare on: the beginnings of two calibration rows, or seeded random tokens where there are none."""
    if calibration:
        chosen = [list(row[:LENGTH]) for row in (calibration[0], calibration[-1])]
        if min(map(len, chosen)) == LENGTH:
            return chosen
    draw = random.Random(0)
    return [[draw.randrange(vocabulary) for _ in range(LENGTH)] for _ in range(ROWS)]


def write(model: Any, rows: Sequence[Sequence[int]], out_dir: Path, *, by: str, noisy: Any = None, floor: float = 0.0) -> None:
    """Stores the answers of `model` (a causal LM) on `rows` (equal lengths) in `out_dir`.

    `by` says who answered. `noisy` is called after that and returns the same model in bf16: its distance is the floor;
    without it, `floor` (nats) is taken.
    """
    logits = answers(model, rows)
    top = logits.topk(TOP, dim=-1)
    reference = {"ids": top.indices.tolist(), "log_probabilities": top.values.tolist()}
    if noisy is not None:
        floor = distance(reference, answers(noisy(), rows))
    data = {"by": by, "rows": [list(row) for row in rows], "floor": floor, **reference}
    (out_dir / FILE).write_text(json.dumps(_rounded(data)), encoding="utf-8")


def skip(out_dir: Path, reason: str) -> None:
    """Stores that there is nothing to compare (an unquantized artifact), so that a missing file is never taken for that."""
    (out_dir / FILE).write_text(json.dumps({"skip": reason}), encoding="utf-8")


def check(model: Any, artifact_dir: Path) -> str | None:
    """None if the loaded `model` (a causal LM) answers as the artifact's weights say, else what is wrong."""
    try:
        data = json.loads((artifact_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"the artifact has no readable {FILE}, so nothing shows that it loads as it was written; quantize it again"
    if "skip" in data:
        return None
    limit = max(LIMIT_NATS, LIMIT_FLOORS * data["floor"])
    found = distance(data, answers(model, data["rows"]))
    if found <= limit:
        return None
    return (
        f"the reloaded model does not answer as its weights say: {found:.3g} nats from the reference ({data['by']}), where "
        f"{limit:.3g} is allowed for rounding; this format loads, but as another model"
    )


def answers(model: Any, rows: Sequence[Sequence[int]]) -> Any:
    """Log-probabilities [positions, vocabulary] (float32, CPU) after each token but the last of each row."""
    import torch

    own = getattr(model, "log_probabilities", None)
    if own is not None:  # another engine's model answers for itself
        return own(rows)
    device = next(p.device for p in (*model.parameters(), *model.buffers()))
    ids = torch.tensor([list(row[:-1]) for row in rows], dtype=torch.long, device=device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.log_softmax(logits.float().flatten(0, 1), dim=-1).cpu()


def distance(reference: Json, found: Any) -> float:
    """Mean over positions of KL(reference || found) in nats over `TOP` tokens and the rest; infinity if not finite."""
    import torch

    if not bool(torch.isfinite(found).any(dim=-1).all()):
        return float("inf")
    ids = torch.tensor(reference["ids"])
    if int(ids.max()) >= found.shape[-1] or ids.shape[0] != found.shape[0]:
        return float("inf")
    p = _with_rest(torch.tensor(reference["log_probabilities"], dtype=torch.float64).exp())
    q = _with_rest(found.double().gather(1, ids).exp())
    terms = torch.where(p > 0, p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-30).log()), torch.zeros_like(p))
    result = float(terms.sum(dim=-1).mean())
    return max(result, 0.0) if result == result else float("inf")


def _with_rest(listed: Any) -> Any:
    """Probabilities [n, TOP] completed by what is left of 1 (rounding may leave a little less than nothing)."""
    import torch

    return torch.cat([listed, (1 - listed.sum(dim=-1, keepdim=True)).clamp_min(1e-9)], dim=-1)


def _rounded(value: Json) -> Json:
    """Seven digits are what float32 carries; more only make the file larger."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def write_dense(request: QuantizeRequest, state: dict[str, Any], by: str) -> None:
    """Stores the answers of the source's architecture with the dense weights `state`, and its bf16 distance as the floor.

    `by` says "float32"; where `reference_dtype` is bf16 it is stored as "bfloat16".
    """
    import torch

    dtype = reference_dtype(sum(t.numel() for t in state.values()))
    wide = dtype == torch.float32
    model = dense(request.model_dir, state, dtype)
    rows = rows_for(int(model.config.vocab_size), request.calibration)
    write(
        model, rows, request.out_dir, by=by if wide else by.replace("float32", "bfloat16"), noisy=lambda: model.to(torch.bfloat16)
    )
