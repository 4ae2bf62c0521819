"""A causal LM cut in two: body (token ids -> final hidden states) and head (hidden states -> float32 logits).

Full-vocabulary logits at every position are most of the time and nearly all of the memory of scoring a small model, and only few
positions are ever looked at. `split(model)` finds the cut, and proves it on a canary batch: `head(body(ids))` must equal
`model(ids).logits.float()`. Three ways, tried in this order; `Split.kind` says which one holds and `Split.note` why:

- `direct`: the body is `model.base_model`, the head is `model.get_output_embeddings()` followed by the scaling and soft-capping
  that the configuration names (Gemma, Granite, Cohere and their kin). Costs nothing.
- `hooked`: the model's own forward runs, with a hook on the head module that takes its input and feeds it no rows (body) or
  other rows (head). Right for every model with something unusual between body and logits; each `head` call pays one forward of
  one token.
- `full`: nothing could be cut; "hidden states" are the logits themselves. Right always, saves nothing.

The parameters and modules of the model are never changed: packed quantized modules answer as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from harness.formats import attention_rules
from harness.scoring.widened import products

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import Cache

Kind = Literal["direct", "hooked", "full"]

CANARY_ROWS = 2
CANARY_TOKENS = 12
CHUNK_BYTES = 4 << 20
WIDE_CHUNK_BYTES = 64 << 20
BLOCK_ROWS = 512
WIDE_VOCABULARY = 16384
"""Above this width a chunk of few rows no longer fits the cache: the vocabulary is cut too."""

LEAST_ROWS = 128
"""Below this many rows the head's matrix product is bound by reading its weight."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Block = Callable[[torch.Tensor, int, int], torch.Tensor]
"""Logits [N, high - low] of hidden states [N, H] for the tokens low .. high of the vocabulary."""

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A way to cut a model: `body` takes the model's keywords and returns hidden states, `head` their logits, `block` the logits
    of a part of the vocabulary (None where the head cannot be cut)."""

    note: str
    body: Callable[..., torch.Tensor]
    head: Map
    block: Block | None = None


class Split:
    """A model in two halves; build it with `split(model)`.

    `hidden_size` and `hidden_dtype` describe what `body` returns (for kind `full` these are the vocabulary's); `vocab_size` is
    the width of the logits; `canary_error` the largest |difference| of a logit from the model's own on the canary batch;
    `together` whether a row of that batch is answered as it is alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        kind: Kind,
        cut: Cut,
        hidden_size: int,
        hidden_dtype: torch.dtype,
        vocab_size: int,
        canary_error: float,
        together: bool,
    ) -> None:
        self.model = model
        self.kind: Kind = kind
        self.note = cut.note
        self.hidden_size = hidden_size
        self.hidden_dtype = hidden_dtype
        self.vocab_size = vocab_size
        self.canary_error = canary_error
        self.together = together
        rope = attention_rules.of_loaded(model.config)
        self._stretches_from = rope.original if rope.rope == "dynamic" else None
        self._body = cut.body
        self._head = cut.head
        self._block = cut.block if vocab_size > WIDE_VOCABULARY else None

    @property
    def block(self) -> Block | None:
        """Logits of a part of a vocabulary that is too wide for the cache; None where the head cannot be cut or need not be."""
        inner = self._block
        if inner is None:
            return None

        def part(hidden: torch.Tensor, low: int, high: int) -> torch.Tensor:
            with torch.no_grad(), self._products():
                return inner(hidden, low, high)

        return part

    @property
    def device(self) -> torch.device:
        """Where token ids go and hidden states come from."""
        return device_of(self.model)

    def body(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        **kwargs: object,
    ) -> torch.Tensor:
        """Final hidden states [B, T, H], the input of the output head, of token ids [B, T].

        Arguments are those of the transformers model; a cache given in `past_key_values` is extended in place. What is None is
        not passed on, so that architectures without that argument run too.
        """
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values, **kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        with torch.no_grad(), self._products():
            self.forget(input_ids.shape[1] + (0 if past_key_values is None else past_key_values.get_seq_length()))
            return self._body(input_ids=input_ids, use_cache=use_cache, **given)

    def forget(self, length: int) -> None:
        """Has a model whose rotary positions stretch forget the inputs before: it keeps what the longest of them needed until it
        sees a short one (transformers' `dynamic_rope_update`). `length`: that of the input to come."""
        if self._stretches_from is not None and length >= self._stretches_from:
            with torch.no_grad():
                self._body(input_ids=canary_ids(self.model, 1, 1), use_cache=False)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [N, V] of hidden states [N, H] (or [B, T, V] of [B, T, H]); scaling and soft-capping included.

        Allocates N * V * 4 bytes at least: callers chunk, or use `scores`.
        """
        with torch.no_grad(), self._products():
            return self._head(hidden).float()

    def _products(self) -> AbstractContextManager[object]:
        return products(self.device, self.hidden_dtype)

    def chunk_rows(self) -> int:
        """How many hidden states `scores` gives the head at once: few, so that a chunk of logits stays in the CPU's cache; more
        where a call costs more than its rows (devices, heads that dequantize, hooked heads)."""
        cheap = self.kind == "direct" and isinstance(self.model.get_output_embeddings(), torch.nn.Linear)
        wanted = CHUNK_BYTES if cheap and self.device.type == "cpu" else WIDE_CHUNK_BYTES
        return int(max(LEAST_ROWS, wanted // (4 * self.vocab_size)))

    def scores(
        self, hidden: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probability in nats float32 [M], is-the-argmax bool [M]) of `targets` [M] after hidden states [N, H].

        Target m is asked at hidden state `rows[m]`, ascending; without `rows` N = M, one target each. `target logit - logsumexp`
        in float32, the head applied to chunks of hidden states: no tensor of [N, V] exists. Of equal logits the first is the
        argmax.
        """
        count, step = len(hidden), self.chunk_rows()
        if rows is None:
            rows = torch.arange(count, device=hidden.device)
        if self._block is not None and self.device.type == "cpu":
            return self._scores_in_blocks(hidden, targets, rows)
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        greedy = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        starts = list(range(0, count, step))
        bounds = torch.searchsorted(rows, torch.tensor([*starts, count], dtype=rows.dtype, device=rows.device)).tolist()
        for start, first, end in zip(starts, bounds[:-1], bounds[1:], strict=True):
            wanted, row = targets[first:end], rows[first:end] - start
            logits = self.head(hidden[start : start + step])
            asked = logits[row, wanted]
            top = logits.amax(dim=-1)
            best = asked == top[row]
            # argmax is several times slower than amax: it is asked only to settle ties, where a target reaches the maximum.
            where = best.nonzero().squeeze(1)
            if len(where):
                best[where] = logits[row[where]].argmax(dim=-1) == wanted[where]
            greedy[first:end] = best
            # In place: the logits are ours and are not needed again. Rows with NaN or infinity give NaN, as they should.
            total = logits.sub_(top[:, None]).exp_().sum(dim=-1).log_().add_(top)
            logprobs[first:end] = asked - total[row]
        return logprobs, greedy

    def _scores_in_blocks(
        self, hidden: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `scores`, the vocabulary in blocks: the head's weight is read once for many rows, and a block of logits stays in the
        cache. The logsumexp runs along (Milakov and Gimelshein 2018, online normalizer calculation)."""
        block = self.block
        assert block is not None
        logprobs = torch.empty(len(targets), dtype=torch.float32)
        greedy = torch.empty(len(targets), dtype=torch.bool)
        starts = list(range(0, len(hidden), BLOCK_ROWS))
        bounds = torch.searchsorted(rows, torch.tensor([*starts, len(hidden)], dtype=rows.dtype)).tolist()
        for start, first, end in zip(starts, bounds[:-1], bounds[1:], strict=True):
            states = hidden[start : start + BLOCK_ROWS]
            wanted, row = targets[first:end], rows[first:end] - start
            width = max(1024, CHUNK_BYTES // (4 * len(states)))
            top = torch.full((len(states),), float("-inf"))
            total = torch.zeros(len(states))
            asked = torch.full((end - first,), float("nan"))
            best = torch.zeros(end - first, dtype=torch.bool)
            for low in range(0, self.vocab_size, width):
                high = min(low + width, self.vocab_size)
                logits = block(states, low, high).float()
                highest = logits.amax(dim=-1)
                here = ((wanted >= low) & (wanted < high)).nonzero().squeeze(1)
                if len(here):
                    at, place = row[here], wanted[here] - low
                    value = logits[at, place]
                    asked[here] = value
                    # The first of equal logits is the argmax: nothing before it, in this block or earlier ones, may reach it.
                    new = (value == highest[at]) & (value > top[at])
                    some = new.nonzero().squeeze(1)
                    if len(some):
                        new[some] = logits[at[some]].argmax(dim=-1) == place[some]
                    best[here] = new
                above = torch.maximum(top, highest)
                total = total * (top - above).exp_() + logits.sub_(above[:, None]).exp_().sum(dim=-1)
                top = above
            greedy[first:end] = best & (asked == top[row])
            logprobs[first:end] = asked - (total.log() + top)[row]
        return logprobs, greedy

    def facts(self) -> dict[str, object]:
        """Plain data for a record."""
        return {
            "kind": self.kind,
            "note": self.note,
            "hidden_size": self.hidden_size,
            "hidden_dtype": str(self.hidden_dtype).removeprefix("torch."),
            "vocab_size": self.vocab_size,
            "canary_error": self.canary_error,
            "batches": self.together,
        }


def split(model: object) -> Split:
    """Cuts a transformers causal LM (or a wrapper that holds one in `.model`) into body and head, proven on a canary batch.

    Never fails for a model whose forward returns `.logits`; see the module's docstring for what it falls back to.
    """
    inner = unwrap(model)
    ids = canary_ids(inner, CANARY_ROWS, CANARY_TOKENS)
    with torch.no_grad():
        own: torch.Tensor = inner(input_ids=ids, use_cache=False).logits
        alone: torch.Tensor = inner(input_ids=ids[:1], use_cache=False).logits
    vocab_size = int(own.shape[-1])
    together = apart(own[:1], alone) <= allowed_deviation(inner, own.dtype)
    reasons: list[str] = []
    ways: tuple[tuple[Kind, Iterator[Cut]], ...] = (("direct", _direct_cuts(inner)), ("hooked", _hooked_cuts(inner)))
    for kind, attempts in ways:
        best: Split | None = None
        try:
            for cut in attempts:
                with torch.no_grad():
                    hidden = cut.body(input_ids=ids, use_cache=False)
                    error = _difference(own, cut.head(hidden))
                if best is None or error < best.canary_error:
                    best = Split(
                        inner,
                        kind=kind,
                        cut=cut,
                        hidden_size=int(hidden.shape[-1]),
                        hidden_dtype=hidden.dtype,
                        vocab_size=vocab_size,
                        canary_error=error,
                        together=together,
                    )
                if error == 0.0:
                    break
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError) as problem:
            reasons.append(f"{kind}: {type(problem).__name__}: {problem}")
        if best is not None and best.canary_error <= tolerance(own):
            return best
        if best is not None:
            reasons.append(f"{kind}: logits differ from the model's own by {best.canary_error:.3g}")
    whole = Cut(
        note="full logits at every position; the model could not be cut: " + "; ".join(reasons),
        body=lambda **kwargs: cast(torch.Tensor, inner(**kwargs).logits),
        head=lambda logits: logits,
    )
    return Split(
        inner,
        kind="full",
        cut=whole,
        hidden_size=vocab_size,
        hidden_dtype=own.dtype,
        vocab_size=vocab_size,
        canary_error=0.0,
        together=together,
    )


def unwrap(model: object) -> PreTrainedModel:
    """The transformers module inside a loader's wrapper (GPTQModel keeps it in `.model`), or the model itself."""
    inner = getattr(model, "model", None)
    wrapped = isinstance(inner, torch.nn.Module) and not isinstance(model, torch.nn.Module)
    if wrapped or (not hasattr(model, "get_output_embeddings") and hasattr(inner, "get_output_embeddings")):
        return cast("PreTrainedModel", inner)
    return cast("PreTrainedModel", model)


def device_of(model: PreTrainedModel) -> torch.device:
    """Device of the input embeddings: where token ids have to be."""
    embeddings = model.get_input_embeddings()
    for tensor in (*embeddings.parameters(), *embeddings.buffers()):
        return tensor.device
    return torch.device(model.device)


def canary_ids(model: PreTrainedModel, rows: int, tokens: int) -> torch.Tensor:
    """Fixed token ids [rows, tokens], all different rows, spread over the vocabulary (a multiplicative walk, no random state)."""
    embeddings = model.get_input_embeddings()
    vocab = int(getattr(embeddings, "num_embeddings", 0) or model.config.get_text_config().vocab_size)
    walk = (torch.arange(1, rows * tokens + 1, dtype=torch.long) * 7919) % vocab
    return walk.view(rows, tokens).to(device_of(model))


DEVIATION = 1e-3
DEVIATION_ROUNDED = 0.05
"""How far the same states, computed in another way, may be from plain ones, relative to their size: in float32 with plain
weights, and where 16 bits or packed weights round on the way. Seen on a trained model: 5e-7 in float32, 7e-3 in bfloat16 if all
is well, 0.5 in either if masks or positions are wrong."""


def allowed_deviation(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """How far states of a dtype may be from those of another way of computing them; see `DEVIATION`."""
    packed = any("Linear" in type(module).__name__ and type(module) is not torch.nn.Linear for module in model.modules())
    return DEVIATION if dtype == torch.float32 and not packed else DEVIATION_ROUNDED


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far states are from others of the same shape: the root mean square of their difference, relative to the size of what is
    expected. Infinite where only one of them is a number."""
    a, b = found.float(), expected.float()
    if not torch.isfinite(b).all():
        return 0.0 if torch.equal(a.isnan(), b.isnan()) else float("inf")
    gap = float((a - b).pow(2).mean().sqrt() / b.pow(2).mean().sqrt())
    return gap if gap == gap else float("inf")


def tolerance(logits: torch.Tensor) -> float:
    """Largest difference that the same computation may show when its rows are batched another way: a few units in the last place
    of the dtype at the logits' size, at least those of 1."""
    finite = logits[torch.isfinite(logits)]
    size = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    return 8 * float(torch.finfo(logits.dtype).eps) * size


def _difference(own: torch.Tensor, ours: torch.Tensor) -> float:
    """Largest |difference|; equal non-finite values count as equal, unequal ones as infinite."""
    if own.shape != ours.shape:
        return float("inf")
    a, b = own.float(), ours.float()
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), torch.zeros_like(a), (a - b).abs())
    return float(gap.nan_to_num(nan=float("inf"), posinf=float("inf")).max())


def _direct_cuts(model: PreTrainedModel) -> Iterator[Cut]:
    """base_model + output embeddings + each reading of the configuration's scaling, the most likely first."""
    base, output = model.base_model, model.get_output_embeddings()
    if base is model or output is None:
        raise AttributeError("no base model apart from the head")

    weight = getattr(output, "weight", None)
    wide = weight.dtype if isinstance(weight, torch.Tensor) and weight.dtype in FLOATS else None

    def body(**kwargs: Any) -> torch.Tensor:
        hidden: torch.Tensor = base(**kwargs)[0]
        # Mamba keeps its residual stream in float32 and narrows it before the head; others have one dtype and lose nothing.
        return hidden if wide is None else hidden.to(wide)

    for note, after in _readings(model.config.get_text_config()):

        def head(hidden: torch.Tensor, after: Map = after) -> torch.Tensor:
            return after(output(hidden))

        def block(hidden: torch.Tensor, low: int, high: int, after: Map = after) -> torch.Tensor:
            bias = None if output.bias is None else output.bias[low:high]
            return after(torch.nn.functional.linear(hidden, output.weight[low:high], bias))

        # Only torch's own Linear: a subclass may hold its weight packed.
        yield Cut(note=note, body=body, head=head, block=block if type(output) is torch.nn.Linear else None)


def _readings(config: PreTrainedConfig) -> Iterator[tuple[str, Map]]:
    """What transformers models do to the head's output, as their configurations name it."""

    def number(*names: str) -> tuple[str, float] | None:
        for name in names:
            value = getattr(config, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value not in (0, 1):
                return name, float(value)
        return None

    scale = number("logits_scaling", "logit_scale", "lm_head_multiplier")
    cap = number("final_logit_softcapping", "logits_soft_cap")
    scalings: list[tuple[str, Map]] = []
    if scale is not None:
        name, factor = scale
        scalings = [(f"logits / {name}", lambda x: x / factor), (f"logits * {name}", lambda x: x * factor)]
        if name != "logits_scaling":  # Granite divides by it; Cohere and Falcon-H1 multiply
            scalings.reverse()
    scalings.append(("", lambda x: x))
    for scaled, rescale in scalings:
        if cap is not None:
            name, limit = cap

            def soften(x: torch.Tensor, rescale: Map = rescale, limit: float = limit) -> torch.Tensor:
                return torch.tanh(rescale(x) / limit) * limit

            def soften_wide(x: torch.Tensor, soften: Map = soften) -> torch.Tensor:
                return soften(x.float())

            both = f"{scaled}, " if scaled else ""
            yield f"base model + head, {both}soft-capped by {name}", soften
            yield f"base model + head, {both}soft-capped by {name} in float32", soften_wide
        yield (f"base model + head, {scaled}" if scaled else "base model + head"), rescale


def _hooked_cuts(model: PreTrainedModel) -> Iterator[Cut]:
    """The model's own forward, with the head module's input taken out or put in by a hook that lives for one call."""
    output = model.get_output_embeddings()
    if output is None:
        raise AttributeError("the model names no output embeddings")
    one = canary_ids(model, 1, 1)

    def body(**kwargs: Any) -> torch.Tensor:
        taken: list[torch.Tensor] = []

        def take(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            taken.append(arguments[0])
            return (arguments[0][:, :0], *arguments[1:])

        handle = output.register_forward_pre_hook(take)
        try:
            model(**kwargs)
        finally:
            handle.remove()
        if len(taken) != 1 or taken[0].shape[:2] != kwargs["input_ids"].shape:
            raise ValueError("the head is not called once with a hidden state per token")
        return taken[0]

    def head(hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden if hidden.dim() == 3 else hidden[None]

        def put(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (rows.to(arguments[0].dtype), *arguments[1:])

        handle = output.register_forward_pre_hook(put)
        try:
            logits: torch.Tensor = model(input_ids=one, use_cache=False).logits
        finally:
            handle.remove()
        return logits if hidden.dim() == 3 else logits[0]

    yield Cut(note="the model's own forward with a hook at its head", body=body, head=head)
