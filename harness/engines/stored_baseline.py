"""The stored baseline: what is kept of its answers, and how a cell is compared with them.

A stored baseline keeps the baseline's *final hidden states*, the input of its output head, bit for bit, with the head's weight:
logits are recomputed from them exactly, and they are vocabulary/hidden times smaller than logits. A model whose head cannot be
written as weight, bias, scale and soft-cap is kept as logits instead, and labelled so.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from harness.engines.base import BASELINE_FACTS, WindowScores
from harness.errors import BadInput, Unsupported
from harness.files import AlreadyThere, draft_folder
from harness.formats import safetensors_file
from harness.scoring.head import Split
from harness.scoring.widened import products

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOKENS_PER_BATCH = 2048
"""Tokens of one forward. Wide enough to keep a CPU's matrix units busy, small enough for activations of any model that fits at
all."""

STORED_SCHEMA = 1

STATES = "states.safetensors"
HEAD = "head.safetensors"


class HeadSettings(TypedDict):
    """The constants of a `PlainHead`, and whether it has a bias."""

    bias: bool
    multiply: float | None
    divide: float | None
    cap: float | None
    cap_wide: bool


class StoredFacts(TypedDict):
    """What `baseline.json` says of the store beside it: `windows` windows of `window` ids, states of width `hidden_size` (the
    vocabulary's where logits are kept), bytes, and those of the float16 logits that the store stands for."""

    schema: int
    kind: Literal["logits", "final hidden states"]
    cut: str
    tokens_digest: str
    windows: int
    window: int
    hidden_size: int
    vocab_size: int
    dtype: str
    head: HeadSettings | None
    tokens_per_batch: int
    states_bytes: int
    head_bytes: int
    float16_logit_bytes: int
    times_smaller_than_logits: float


_SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def token_scores(logits: torch.Tensor, targets: torch.Tensor, baseline: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The columns of `WindowScores` [N] (float32) of logits [N, V] at targets [N], against the baseline's logits where given."""
    wanted = targets[:, None]
    ours = torch.log_softmax(logits, dim=-1)
    ours_true = ours.gather(1, wanted).squeeze(1)
    if baseline is None:
        return {"nll": -ours_true}
    theirs = torch.log_softmax(baseline, dim=-1)
    theirs_true = theirs.gather(1, wanted).squeeze(1)
    top, place = theirs.max(dim=-1)
    return {
        "nll": -ours_true,
        "kl": divergence(theirs, ours),
        "same_top": (ours.argmax(dim=-1) == place).float(),
        "base_top": top.exp(),
        "delta_p": ours_true.exp() - theirs_true.exp(),
        "base_nll": -theirs_true,
    }


def window_scores(columns: Mapping[str, NDArray[np.float32]]) -> WindowScores:
    """The scores of one window from its columns [T-1] by name, as `token_scores` names them."""
    if "kl" not in columns:
        return WindowScores(nll=columns["nll"])
    return WindowScores(
        nll=columns["nll"],
        kl=columns["kl"],
        same_top=columns["same_top"].astype(bool),
        base_top=columns["base_top"],
        delta_p=columns["delta_p"],
        base_nll=columns["base_nll"],
    )


LARGEST = 20.0
"""Beyond it the float32 steps of r are felt in e^r (which overflows at 88), and p (r + 1) is nothing beside q: 4e-8 of it."""


def divergence(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """KL(theirs || ours) in nats [N] of log-probabilities [N, V]: sum of p (ln p - ln q), where 0 ln 0 = 0 (Kullback and Leibler
    1951).

    Summed as p (e^r - 1 - r) with r = ln q - ln p, which is the same because p and q each add up to 1 (the Bregman form). No
    term of it is negative, and what rounding did to the normalization cancels: in float32 the plain sum is off by about 1e-7
    and may fall below 0, this one by 1e-12 where the two are close. Exactly 0 where both are bit-equal; NaN or infinite where
    either is, never clipped.
    """
    ratio = ours - theirs
    terms = torch.expm1(ratio).sub_(ratio).mul_(theirs.exp())
    if not ratio.amax() < LARGEST:
        terms = torch.where(ratio >= LARGEST, ours.exp(), terms)  # also where p is 0
        terms.masked_fill_((theirs == -torch.inf) & (ours == -torch.inf), 0.0)
    return terms.sum(dim=-1)


def tokens_digest(windows: Sequence[Sequence[int]]) -> str:
    """SHA-256 over the windows' ids: two stores of the same digest answer for the same positions."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(len(window).to_bytes(8, "little"))
        digest.update(torch.tensor(list(window), dtype=torch.int64).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainHead:
    """An output head written out: logits = cap * tanh(scale(hidden weight^T + bias) / cap), each step as the model's own dtype
    does it.

    `weight` [V, H]; `multiply` or `divide` by a constant; `cap` None or the soft cap, computed in float32 if `cap_wide`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    multiply: float | None = None
    divide: float | None = None
    cap: float | None = None
    cap_wide: bool = False

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [N, V] of hidden states [N, H]."""
        return self.block(hidden, 0, len(self.weight))

    def block(self, hidden: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """Float32 logits [N, high - low] for a part of the vocabulary."""
        bias = None if self.bias is None else self.bias[low:high]
        with products(hidden.device, hidden.dtype):
            logits = torch.nn.functional.linear(hidden, self.weight[low:high], bias)
        if self.multiply is not None:
            logits = logits * self.multiply
        if self.divide is not None:
            logits = logits / self.divide
        if self.cap is not None:
            logits = logits.float() if self.cap_wide else logits
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.float()

    def settings(self) -> HeadSettings:
        return {
            "bias": self.bias is not None,
            "multiply": self.multiply,
            "divide": self.divide,
            "cap": self.cap,
            "cap_wide": self.cap_wide,
        }

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        tensors = {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(path))


def plain_head(cut: Split, model: PreTrainedModel, window: Sequence[int]) -> PlainHead | None:
    """The model's head as weight, bias and constants, if that gives the head's own logits bit for bit on a real window; else
    None."""
    output = model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    # A subclass of Tensor, or another dtype, is a quantized head.
    if cut.kind == "full" or weight is None or type(weight) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if weight.dtype not in _SAFETENSORS_NAMES:
        return None
    ids = torch.tensor([list(window)[:-1]], dtype=torch.long, device=cut.device)
    with torch.inference_mode():
        hidden = cut.body(ids)[0, : cut.chunk_rows()]
        if hidden.dtype != weight.dtype or hidden.shape[-1] != weight.shape[-1]:
            return None
        own = cut.head(hidden)
        for candidate in _candidates(weight, getattr(output, "bias", None), model.config.get_text_config()):
            if torch.equal(own.nan_to_num(), candidate(hidden).nan_to_num()):
                return candidate
    return None


def _candidates(weight: torch.Tensor, bias: torch.Tensor | None, config: PreTrainedConfig) -> Iterator[PlainHead]:
    """Every reading of the constants that transformers' configurations name (Granite divides, Cohere and Falcon-H1 multiply,
    Gemma caps)."""

    def constant(*names: str) -> float | None:
        values = [getattr(config, name, None) for name in names]
        return next(
            (float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and v not in (0, 1)), None
        )

    scale = constant("logits_scaling", "logit_scale", "lm_head_multiplier")
    cap = constant("final_logit_softcapping", "logits_soft_cap")
    caps = [(None, False)] if cap is None else [(cap, False), (cap, True), (None, False)]
    scales = [(None, None)] if scale is None else [(scale, None), (None, scale), (None, None)]
    for divide, multiply in scales:
        for limit, wide in caps:
            yield PlainHead(weight=weight, bias=bias, multiply=multiply, divide=divide, cap=limit, cap_wide=wide)


class StoredBaseline:
    """A folder that `store_baseline` wrote, opened for reading. States are read from disk batch by batch."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file

        path = folder / BASELINE_FACTS
        if not path.is_file():
            raise Unsupported(
                f"no stored baseline answers in {folder}: {BASELINE_FACTS} is missing; run the baseline's cell first"
            )
        self.meta: StoredFacts = json.loads(path.read_text(encoding="utf-8"))
        if self.meta.get("schema") != STORED_SCHEMA:
            raise Unsupported(
                f"{path} has schema {self.meta.get('schema')}, this version reads {STORED_SCHEMA}; delete the folder"
            )
        self.tokens_per_batch = self.meta["tokens_per_batch"]
        self._device = device
        file: Any = safe_open(str(folder / STATES), framework="pt")
        self._slice = file.get_slice("states")
        self.head: Callable[[torch.Tensor], torch.Tensor]
        settings = self.meta["head"]
        if settings is None:
            self.head = _same
        else:
            tensors = load_file(str(folder / HEAD), device=str(device))
            self.head = PlainHead(
                weight=tensors["weight"],
                bias=tensors.get("bias"),
                multiply=settings["multiply"],
                divide=settings["divide"],
                cap=settings["cap"],
                cap_wide=settings["cap_wide"],
            )

    def check(self, windows: Sequence[Sequence[int]], *, vocab_size: int) -> None:
        """Unsupported unless the store answers for these very windows and this vocabulary."""
        if vocab_size != self.meta["vocab_size"]:
            raise Unsupported(
                f"the baseline has a vocabulary of {self.meta['vocab_size']} logits, this cell of {vocab_size}: "
                "their distributions cannot be compared; choose a baseline of the same model"
            )
        if tokens_digest(windows) != self.meta["tokens_digest"]:
            raise Unsupported(
                "the stored baseline answers are for other tokens (another corpus, window, limit or tokenizer) "
                "and cannot be compared with these"
            )

    def states(self, start: int, count: int) -> torch.Tensor:
        """Hidden states [count, T-1, H] (or logits) of windows start .. start + count."""
        states: torch.Tensor = self._slice[start : start + count].to(self._device)
        return states


def stored_facts(
    windows: Sequence[Sequence[int]],
    folder: Path,
    *,
    cut: str,
    width: int,
    vocab_size: int,
    dtype: torch.dtype,
    head: PlainHead | None,
    positions: int | None = None,
) -> StoredFacts:
    """The facts of a store whose states (and head, where hidden states are kept) lie in `folder` already. `positions`: of each
    window; None: all but the last id's."""
    states_bytes = (folder / STATES).stat().st_size
    logit_bytes = 2 * len(windows) * (len(windows[0]) - 1 if positions is None else positions) * vocab_size
    return {
        "schema": STORED_SCHEMA,
        "kind": "logits" if head is None else "final hidden states",
        "cut": cut,
        "tokens_digest": tokens_digest(windows),
        "windows": len(windows),
        "window": len(windows[0]),
        "hidden_size": width,
        "vocab_size": vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
        "head": None if head is None else head.settings(),
        "tokens_per_batch": TOKENS_PER_BATCH,
        "states_bytes": states_bytes,
        "head_bytes": 0 if head is None else (folder / HEAD).stat().st_size,
        "float16_logit_bytes": logit_bytes,
        "times_smaller_than_logits": round(logit_bytes / states_bytes, 2),
    }


def keep_baseline(folder: Path, write: Callable[[Path], StoredFacts]) -> StoredFacts:
    """Has `write` fill a folder beside `folder`, which then appears at once and complete; returns what `write` returned."""
    try:
        with draft_folder(folder, over=False) as draft:
            meta = write(draft)
            (draft / BASELINE_FACTS).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except AlreadyThere:  # another process was first: its store answers the same question, or it is no store at all
        if not (folder / BASELINE_FACTS).is_file():
            raise
    return meta


def _same(logits: torch.Tensor) -> torch.Tensor:
    return logits


@contextmanager
def states_file(path: Path, *, shape: tuple[int, int, int], dtype: torch.dtype) -> Iterator[Callable[[torch.Tensor], None]]:
    """A safetensors file of one tensor `states`, written front to back (the library itself wants the whole tensor in memory).

    Raises if the parts do not add up to `shape`.
    """
    wanted = shape[0] * shape[1] * shape[2] * dtype.itemsize
    written = 0
    with path.open("wb") as file:
        file.write(safetensors_file.header_bytes([("states", _SAFETENSORS_NAMES[dtype], shape)]))

        def append(part: torch.Tensor) -> None:
            nonlocal written
            if part.dtype != dtype:
                raise TypeError(f"hidden states of {part.dtype} where {dtype} was promised")
            raw = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            written += file.write(raw.data)

        yield append
        file.flush()
        os.fsync(file.fileno())
    if written != wanted:
        raise RuntimeError(f"{path.name}: {written} bytes of states written, {wanted} expected")


def equal_length(windows: Sequence[Sequence[int]]) -> int:
    lengths = {len(window) for window in windows}
    if len(lengths) != 1:
        raise BadInput(f"a stored baseline needs windows of one length, these have {sorted(lengths) or 'none at all'}")
    return lengths.pop()
