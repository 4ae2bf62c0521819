"""A small training loop: so many steps on so many rows, in float32 with AdamW, going on from a checkpoint where it was killed.

The same rows, recipe and thread count give the same weights, and a run that was killed and goes on gives those of one that was
not: a checkpoint holds weights, both moments and the step, rows come by their position, and nothing is drawn while training (no
dropout: the model stays in eval mode).

AdamW (Loshchilov & Hutter 2019) with its authors' betas and no decay; gradients clipped to a norm of 1 (Pascanu et al. 2013); the
rate warms up over a twentieth of the steps and falls linearly to zero. Weights and moments are float32. Products run in bfloat16
where the device has units for that (autocast), else in float32; which of the two is in the log.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from harness.errors import BadInput, Nonfinite
from harness.files import draft_file
from harness.measure import machine

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Loss = Literal["ce", "kl"]
"""`ce`: cross entropy of the next token of the text. `kl`: KL(source || trained) over the vocabulary after each token."""

CHECKPOINT = "checkpoint.safetensors"

SAVE_SECONDS, SAVE_SHARE = 30.0, 0.05
"""A checkpoint is written at most that often, and so seldom that writing takes at most this share of the time."""

LOGITS_AT_ONCE = 1 << 26
"""Rows of a step are passed through the model in parts of at most so many logits (256 MiB in float32)."""

Progress = Callable[[int, int], None]
"""Told (steps done, steps in all)."""


def quiet(done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`steps` updates on `rows` rows each, the rate's highest value, and what is learned from a row."""

    steps: int
    rows: int
    rate: float
    loss: Loss = "ce"


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What training did: the loss in nats per token before each step, the seconds that it took, killed runs' included, in what it
    multiplied, and how many tokens it saw."""

    losses: tuple[float, ...]
    seconds: float
    products: str
    tokens: int


@dataclass(slots=True, kw_only=True)
class _State:
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def train(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    recipe: Recipe,
    *,
    folder: Path,
    teacher: PreTrainedModel | None = None,
    progress: Progress = quiet,
) -> Log:
    """Trains the parameters of `model` that ask for gradients, in place; `model` holds them in float32 on one device.

    `rows`: recipe.steps * recipe.rows rows of token ids, of equal length; step n sees its own. `folder` keeps the checkpoint,
    from which an interrupted call goes on. `teacher` is the source for `kl`. Nonfinite where the loss is no number any more."""
    import torch

    if len(rows) < recipe.steps * recipe.rows:
        raise BadInput(f"{len(rows)} rows for {recipe.steps} steps of {recipe.rows}; this is a defect of the caller")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), lr=recipe.rate, betas=(0.9, 0.999), weight_decay=0.0)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    state = _resumed(folder, named, optimizer)
    half = has_16_bit_units(next(iter(named.values())).device.type)
    saved, cost = time.monotonic(), 0.0
    while state.step < recipe.steps:
        begun = time.monotonic()
        batch = torch.tensor([list(row) for row in rows[state.step * recipe.rows : (state.step + 1) * recipe.rows]])
        state.losses.append(_step(model, batch, recipe, optimizer, at=state.step, teacher=teacher, half=half))
        state.step += 1
        state.seconds += time.monotonic() - begun
        progress(state.step, recipe.steps)
        if time.monotonic() - saved > max(SAVE_SECONDS, cost / SAVE_SHARE):
            begun = time.monotonic()
            _save(folder, named, optimizer, state)
            saved = time.monotonic()
            cost = saved - begun
    return Log(
        losses=tuple(state.losses),
        seconds=state.seconds,
        products="bfloat16" if half else "float32",
        tokens=sum(map(len, rows[: recipe.steps * recipe.rows])),
    )


def has_16_bit_units(device: str) -> bool:
    """Whether a kind of device multiplies bfloat16 matrices faster than float32 ones; of a CPU its flags tell."""
    return device != "cpu" or not machine.cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def factor(step: int, steps: int) -> float:
    """What the rate is multiplied by at a step, from 0: warm-up over a twentieth, then linear to zero after the last step."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm + 1))


def _step(
    model: PreTrainedModel,
    batch: Tensor,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    *,
    at: int,
    teacher: PreTrainedModel | None,
    half: bool,
) -> float:
    """One update; the loss in nats per token before it."""
    import torch

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device, total = parameters[0].device, 0.0
    for part in _parts(batch, int(model.config.get_text_config().vocab_size)):
        part = part.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(input_ids=part, use_cache=False).logits
        loss = _loss(logits.float(), part, recipe.loss, teacher) * (len(part) / len(batch))
        loss.backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise Nonfinite(f"training: the loss of step {at + 1} of {recipe.steps} is {total}; lower train: rate ({recipe.rate:g})")
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate * factor(at, recipe.steps)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _parts(batch: Tensor, vocabulary: int) -> Iterator[Tensor]:
    size = max(1, LOGITS_AT_ONCE // (batch.shape[1] * vocabulary))
    yield from batch.split(size)


def _loss(logits: Tensor, ids: Tensor, kind: Loss, teacher: PreTrainedModel | None) -> Tensor:
    """Mean over the tokens of rows, in nats: `logits` float32 [rows, length, vocabulary], `ids` [rows, length]."""
    import torch
    from torch.nn import functional

    if kind == "ce":
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert teacher is not None
    with torch.no_grad():
        wanted = torch.log_softmax(teacher(input_ids=ids, use_cache=False).logits.float(), dim=-1)
    ours = torch.log_softmax(logits, dim=-1)
    return functional.kl_div(ours.flatten(0, 1), wanted.flatten(0, 1), reduction="batchmean", log_target=True)


# ---------------------------------------------------------------------- checkpoints

_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}


def _save(folder: Path, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: _State) -> None:
    """Whole or not there: a kill while writing leaves the former one."""
    from safetensors.torch import save_file

    tensors = {f"weight/{name}": p.detach() for name, p in named.items()}
    for part, moment in _MOMENTS.items():
        tensors |= {f"{part}/{name}": optimizer.state[p][moment] for name, p in named.items()}
    said = {"step": str(state.step), "seconds": repr(state.seconds), "losses": json.dumps(state.losses)}
    with draft_file(folder / CHECKPOINT) as draft:
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, str(draft), metadata=said)


def _resumed(folder: Path, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> _State:
    """Where an earlier call was, with its weights and moments put in; the beginning where it left nothing."""
    import torch
    from safetensors import safe_open

    path = folder / CHECKPOINT
    if not path.is_file():
        return _State()
    with safe_open(str(path), framework="pt") as held:
        said = cast("Mapping[str, str]", held.metadata())
        step = int(said["step"])
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(held.get_tensor(f"weight/{name}"))
                moments = {own: held.get_tensor(f"{part}/{name}").to(parameter.device) for part, own in _MOMENTS.items()}
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return _State(step=step, seconds=float(said["seconds"]), losses=json.loads(said["losses"]))
