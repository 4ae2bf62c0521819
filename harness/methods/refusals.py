"""Reasons why methods cannot take a model, known before anything runs: each is one sentence for people, or None."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from harness.artifact import BodyWeight, ModelShape, WeightKind
from harness.formats import attention_rules
from harness.formats.config_json import integer, text_part
from harness.formats.quantization_config import quantization
from harness.formats.safetensors_file import brief
from harness.models import body


def quantized(shape: ModelShape | None) -> str | None:
    """Why a checkpoint that is quantized already is not quantized once more."""
    if shape is None or quantization(shape.config) is None:
        return None
    return "the checkpoint is already quantized; quantize its unquantized source instead"


_HELD: dict[WeightKind, str] = {
    "linear": "linear layers",
    "derived": "layers of a class derived from nn.Linear",
    "conv1d": "Conv1D layers",
    "experts": "experts in one parameter of three dimensions",
    "other": "matrices of modules of the model's own",
}


def head_size(shape: ModelShape) -> int:
    """Numbers of an attention head; 0 where the configuration does not say."""
    text = text_part(attention_rules.complete(shape.config))
    heads = integer(text, "num_attention_heads")
    return integer(text, "head_dim", default=shape.hidden // heads if heads else 0)


def untaken(shape: ModelShape | None, reasons: Mapping[str, str]) -> str | None:
    """Why a library that does not quantize the architecture right is not asked; tests/architectures.py tries them all."""
    kind = None if shape is None else text_part(shape.config).get("model_type")
    why = reasons.get(str(kind))
    return None if why is None else f"{why}; choose another method"


def left(shape: ModelShape | None, takes: Collection[WeightKind], method: str) -> str | None:
    """Why a method that takes these kinds of weights would not be what its name says: it would leave more than a tenth of the
    body's weights as they are."""
    return left_by(shape, lambda weight: weight.kind in takes, method)


def left_by(shape: ModelShape | None, taken: Callable[[BodyWeight], bool], method: str) -> str | None:
    """As `left`, by the weight."""
    weights = weights_of(shape)
    share, kept = body.left(weights, taken)
    if share <= 1 - body.ENOUGH:
        return None
    kinds = {weight.kind: [w.name for w in kept if w.kind == weight.kind] for weight in kept}
    names = "; ".join(f"{brief(names)} ({_HELD[kind]})" for kind, names in kinds.items())
    return (
        f"{method} would leave {share:.0%} of the model's weights (embedding and head aside) unquantized: {names}; choose a "
        "method that takes them"
    )


def weights_of(shape: ModelShape | None) -> tuple[BodyWeight, ...]:
    """The weights of the body: as the loaded model holds them, or where that is not known as the file stores them."""
    if shape is None:
        return ()
    if shape.body is not None:
        return shape.body
    if text_part(shape.config) is not shape.config:  # a file with parts for other inputs does not say which is which
        return ()
    return tuple(BodyWeight(name=n.name, kind="linear", rows=n.rows, columns=n.columns) for n in shape.linears)


def linear(weight: BodyWeight) -> bool:
    """What methods take that know nn.Linear only."""
    return weight.kind in ("linear", "derived")


def any_layer(weight: BodyWeight) -> bool:
    """What methods take that quantize layer by layer: not experts in one parameter, nor a module's own matrix."""
    return weight.kind in ("linear", "derived", "conv1d")


def widths(shape: ModelShape | None) -> list[tuple[str, int]]:
    """Names and input features of the layers that methods quantize."""
    return [(weight.name, weight.columns) for weight in weights_of(shape) if any_layer(weight)]


def undivided(
    shape: ModelShape | None, *, columns: int = 1, rows: int = 1, taken: Callable[[BodyWeight], bool] = any_layer
) -> str | None:
    """Why a layer of the model that a method has `taken` cannot be cut into groups of `columns` input features and `rows` output
    features."""
    for weight in filter(taken, weights_of(shape)):
        outputs = weight.rows // 2 if weight.name.endswith(".gate_up_proj") and weight.kind == "experts" else weight.rows
        if weight.columns % columns:
            return f"{weight.name} has {weight.columns} input features, which do not divide into groups of {columns}"
        if outputs % rows:
            return f"{weight.name} has {outputs} output features, which do not divide by {rows} as the packing needs"
    return None


def undivided_groups(
    shape: ModelShape | None, group: int, *, rows: int = 1, taken: Callable[[BodyWeight], bool] = any_layer
) -> str | None:
    """As `undivided`, for a method whose group size can be chosen; `group` -1 = an output channel, which always divides."""
    reason = undivided(shape, columns=group, rows=rows, taken=taken) if group > 0 else None
    return f"{reason}; choose a smaller group_size" if reason else None
