"""Ledger: is every weight of the source in the artifact, exactly once?

The reload check compares an artifact with itself, so a quantizer that drops a bias, replaces a norm or ties a head passes it.
Here the artifact is compared with the *source*, once, when it is made. Every weight that the source stores is in it: quantized
(then its shape is compared), kept (then its values are, at the artifact's dtype), or, where it is stored once more, equal to the
tensor that it is tied to. Nothing else is in it but what models compute themselves and biases of zeros, which some formats always
store.

Some methods fold scales into norms and biases, and their reciprocals into the columns of the layer that follows (AWQ,
SmoothQuant). Their rows say so (`Method.folds`), and there the product is compared. With a kept vector v that the source has as
v0, the layer that follows has to hold its columns times v0 / v; and every column scale that a quantized layer of the block shows
has to be explained by such a vector, or by the rows of a quantized layer before it.

Only one tensor of each side is in memory at a time, or the few of one block where products are compared.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, StoredTensor
from harness.errors import BadLedger
from harness.formats import config_json, safetensors_file
from harness.formats.safetensors_file import HeaderEntry, brief
from harness.methods.layer_errors import LayerError
from harness.models import source

if TYPE_CHECKING:
    from torch import Tensor

SHRUNK, SPREAD, CLIPPED, DEVIATIONS = 0.05, 0.02, 2.0, 4.0
"""Of the columns of a layer after a folded scale: how far their common gain may be from 1, and single gains from the common one.
To that is added what rounding and clipping do to single columns, times the square of the relative rounding error (at 2 bits a
column of small weights may round to nothing, so that little can be told there), and so many standard errors of a column's
gain. A column that was scaled to a tenth beside others of its group rounds to nothing at 4 bits, too: each counts by its part of
the squared weights, less what of it is rounding."""


def held(
    folder: Path,
    rows: Iterable[StoredTensor],
    shape_of: Callable[[str], tuple[int, ...] | None] = lambda layer: None,
    read: Callable[[str], Tensor] | None = None,
) -> list[HeldWeight]:
    """The weights of an artifact in safetensors from the `rows` of its ledger: one for every quantized layer, and all that
    belongs to none. `shape_of` (layer) is the shape of its weight, `read` (layer) the weight that its codes stand for."""
    entries = {entry.name: entry for entry in safetensors_file.stored(folder)}
    rows = list(rows)
    layers = dict.fromkeys(row.layer for row in rows if row.layer)
    quantized = [
        HeldWeight(
            name=f"{layer}.weight",
            shape=shape_of(layer),
            quantized=True,
            read=None if read is None else lambda layer=layer, read=read: read(layer),  # type: ignore[misc]
        )
        for layer in layers
    ]
    return quantized + [_kept(entries[row.name]) for row in rows if not row.layer]


def _kept(entry: HeaderEntry) -> HeldWeight:
    def values() -> Tensor:
        return safetensors_file.tensor(entry)

    return HeldWeight(name=entry.name, shape=entry.shape, quantized=False, read=values, file=entry.file)


def check(model_dir: Path, weights: Iterable[HeldWeight], *, folds: bool = False) -> list[LayerError]:
    """Compares the `weights` of an artifact with the checkpoint in `model_dir`. BadLedger names the tensor, both shapes and the
    likely cause. Where scales may be folded, the layers' errors in the fit of these scales."""
    stored = safetensors_file.checkpoint(model_dir)
    by_name: dict[str, HeldWeight] = {}
    for weight in weights:
        if weight.name in by_name:
            raise BadLedger(
                f"{weight.name}: the artifact holds it twice ({_shape(by_name[weight.name])} and {_shape(weight)}), so what is "
                "loaded depends on who loads it; the quantizing library packed the layer and kept its weight as well"
            )
        by_name[weight.name] = weight
    pairs, missing, extra = _matched(stored, by_name)
    view = source.known(model_dir)
    transposed, tied = (frozenset(), frozenset()) if view is None else (frozenset(view.transposed), frozenset(view.tied))
    _same_elements(model_dir, missing, extra)
    for entry, weight in pairs:
        _same_shape(entry, weight, transposed=entry.name in transposed)
    if missing:
        raise BadLedger(_lost(missing, extra))
    for weight in extra.values():
        if not (weight.quantized and weight.name in tied):
            _explained(weight, stored)
    changed = [(entry, weight) for entry, weight in pairs if not weight.quantized and not _same_values(entry, weight)]
    if folds:
        kind = str(config_json.text_part(config_json.read(model_dir)).get("model_type", ""))
        return _folded(pairs, changed, plus_one=kind.startswith(_PLUS_ONE))
    if changed:
        raise BadLedger(_replaced(*changed[0], others=len(changed) - 1))
    return []


# ---------------------------------------------------------------------- names


def _matched(
    stored: Mapping[str, HeaderEntry], by_name: Mapping[str, HeldWeight]
) -> tuple[list[tuple[HeaderEntry, HeldWeight]], dict[str, HeaderEntry], dict[str, HeldWeight]]:
    """Pairs of a source's weight and the artifact's, what of the source has none, and what of the artifact. A class may load
    under another prefix than it stores; the rest of the name has to be equal."""
    pairs = [(stored[name], weight) for name, weight in by_name.items() if name in stored]
    missing = {name: entry for name, entry in stored.items() if name not in by_name}
    extra = {name: weight for name, weight in by_name.items() if name not in stored}
    for name in list(extra):
        other = _by_ending(name, missing) or next((n for n in missing if n.endswith(f".{name}")), None)
        if other is not None:
            pairs.append((missing.pop(other), extra.pop(name)))
    return pairs, missing, extra


def _by_ending(name: str, known: Mapping[str, object]) -> str | None:
    """The longest ending of a dotted name that is known."""
    while "." in name:
        name = name.partition(".")[2]
        if name in known:
            return name
    return None


def _same_elements(model_dir: Path, missing: dict[str, HeaderEntry], extra: dict[str, HeldWeight]) -> None:
    """Takes out of both what holds the same numbers in other pieces: experts that one side stores each by itself and the other as
    one tensor. Pieces belong together by the name that transformers loads them under."""
    if not missing or not extra:
        return
    loaded = source.loaded_names(model_dir, [*missing, *extra])
    ours: dict[str, list[str]] = defaultdict(list)
    theirs: dict[str, list[str]] = defaultdict(list)
    for name in missing:
        ours[_pieces(loaded[name])].append(name)
    for name in extra:
        theirs[_pieces(loaded[name])].append(name)
    for group in ours.keys() & theirs.keys():
        entries, weights = [missing[n] for n in ours[group]], [extra[n] for n in theirs[group]]
        shapes = [weight.shape for weight in weights]
        count = sum(_numbers(shape) for shape in shapes if shape is not None)
        if None not in shapes and count != sum(entry.parameters for entry in entries):
            continue
        kept = all(not weight.quantized for weight in weights)
        if kept and not _same_numbers(entries, weights):
            raise BadLedger(
                f"{brief(ours[group])}: the artifact holds other values under {brief(theirs[group])}, though it does not "
                "quantize them; the quantizing library replaced or damaged them"
            )
        for name in ours[group]:
            del missing[name]
        for name in theirs[group]:
            del extra[name]


def _pieces(name: str) -> str:
    """What a name has in common with those of the other pieces of one tensor."""
    experts = re.match(r"(.*?\.experts)\b", name)
    return experts.group(1) if experts else name.removesuffix(".weight")


def _numbers(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# ---------------------------------------------------------------------- shapes and values


def _same_shape(entry: HeaderEntry, weight: HeldWeight, *, transposed: bool) -> None:
    expected = entry.shape[::-1] if transposed and weight.quantized else entry.shape
    if weight.shape not in (None, expected):
        raise BadLedger(
            f"{entry.name}: the artifact holds {_shape(weight)} where the source has {list(entry.shape)}; the quantizing library "
            "cut, padded or exchanged it"
        )


def _shape(weight: HeldWeight) -> str:
    what = "packed" if weight.quantized else "kept"
    return f"{what} {'in a shape that is not told' if weight.shape is None else list(weight.shape)}"


def _same_values(entry: HeaderEntry, weight: HeldWeight) -> bool:
    """Whether a kept tensor holds the source's values at its own dtype."""
    if weight.read is None or (weight.file is not None and weight.file.resolve() == entry.file.resolve()):
        return True  # the artifact links to the source's own file
    theirs: Tensor = weight.read()
    return _equal(safetensors_file.tensor(entry), theirs)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """Whether `theirs` is `ours` at its own dtype, cast at once or by way of float32."""
    import torch

    if ours.shape != theirs.shape:
        return False
    if not theirs.dtype.is_floating_point or not ours.dtype.is_floating_point:
        return torch.equal(ours.to(theirs.dtype), theirs)
    wide = ours.float() if ours.dtype.itemsize < 2 else ours  # torch casts float8 to few types
    return any(_alike(cast, theirs) for cast in (wide.to(theirs.dtype), wide.float().to(theirs.dtype)))


def _alike(one: Tensor, other: Tensor) -> bool:
    import torch

    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _same_numbers(entries: Sequence[HeaderEntry], weights: Sequence[HeldWeight]) -> bool:
    """Whether both hold the same numbers, in whatever order, at the artifact's dtype."""
    import torch

    theirs = [weight.read() for weight in weights if weight.read is not None]
    dtype = theirs[0].dtype if theirs else torch.float32
    ours = [safetensors_file.tensor(entry).to(dtype).reshape(-1) for entry in entries]
    one, other = torch.cat(ours), torch.cat([t.to(dtype).reshape(-1) for t in theirs])
    return one.shape == other.shape and _alike(one.sort().values, other.sort().values)


def _lost(missing: Mapping[str, HeaderEntry], extra: Mapping[str, HeldWeight]) -> str:
    """What is said of weights that the artifact lacks."""
    name = next(iter(missing))
    entry = missing[name]
    others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    cause = "the quantizing library dropped it"
    if name.endswith("bias"):
        cause = "the quantizing library dropped the bias"
    elif "embed" in name or name.endswith(("head.weight", "output.weight", "embed_out.weight")):
        cause = "the quantizing library tied the head to the embedding, which the source does not"
    elif extra:
        cause = f"the quantizing library dropped it, or stores it under another name ({brief(extra)})"
    return f"{name}{others}: the source has {list(entry.shape)}, the artifact has no such tensor; {cause}"


def _replaced(entry: HeaderEntry, weight: HeldWeight, others: int) -> str:
    assert weight.read is not None
    ours, theirs = safetensors_file.tensor(entry).float(), weight.read().float()
    apart = f"they differ by up to {float((ours - theirs).abs().max()):.3g}" if ours.shape == theirs.shape else "shapes differ"
    more = f" (and {others} more)" if others else ""
    return (
        f"{entry.name}{more}: the artifact keeps {list(theirs.shape)}, the source has {list(ours.shape)}, and the values are not "
        f"the source's ({apart}), though the method does not change them; the quantizing library replaced or damaged the tensor"
    )


_PLUS_ONE = ("gemma", "recurrent_gemma", "qwen3_next", "nemotron")
"""Model types (their beginnings) whose norms multiply by 1 + weight."""

_COMPUTED = re.compile(r"(^|\.)(inv_freq|original_inv_freq|masked_bias|position_ids|attn_mask|causal_mask)$")


def _explained(weight: HeldWeight, stored: Mapping[str, HeaderEntry]) -> None:
    """BadLedger for a tensor that the source does not have, unless it is computed by the model, a bias of zeros, or an equal copy
    of one that the source has (a tied head)."""
    import torch

    if _COMPUTED.search(weight.name):
        return
    if not weight.quantized and weight.read is not None:
        values: Tensor = weight.read()
        if weight.name.endswith("bias") and not bool(values.any()):
            return
        alike = [e for e in stored.values() if len(e.shape) == 2 and e.shape == tuple(values.shape)]
        if any(_equal(safetensors_file.tensor(entry), values) for entry in alike):
            return
        square = values.dim() == 4 and values.shape[:2] == (1, 1) and values.shape[2] == values.shape[3]
        if square and weight.name.endswith(".bias") and values.dtype in (torch.bool, torch.uint8):
            return
    raise BadLedger(
        f"{weight.name}: the artifact holds it ({_shape(weight)}), and the source has no such tensor; the quantizing library "
        "added it, or untied a weight that the source ties"
    )


# ---------------------------------------------------------------------- folded scales


def _folded(
    pairs: Sequence[tuple[HeaderEntry, HeldWeight]],
    changed: Sequence[tuple[HeaderEntry, HeldWeight]],
    *,
    plus_one: bool,
) -> list[LayerError]:
    """Compares products where scales were folded: block by block, what vectors were divided by is what columns were
    multiplied by. What is left of each layer in this fit is its error."""
    vectors: dict[str, list[tuple[HeaderEntry, HeldWeight]]] = defaultdict(list)
    layers: dict[str, list[tuple[HeaderEntry, HeldWeight]]] = defaultdict(list)
    for entry, weight in changed:
        if len(entry.shape) != 1:
            raise BadLedger(_replaced(entry, weight, others=0))
        vectors[_block(entry.name)].append((entry, weight))
    for entry, weight in pairs:
        if weight.quantized and weight.read is not None:
            layers[_block(entry.name)].append((entry, weight))
    biases = {entry.name: (entry, weight) for entry, weight in pairs if entry.name.endswith("bias") and not weight.quantized}
    for block, members in vectors.items():
        if block not in layers:
            raise BadLedger(_replaced(*members[0], others=len(members) - 1))
    errors = []
    for block, members in layers.items():
        errors += _block_explained(members, vectors.get(block, []), biases=biases, plus_one=plus_one)
    return errors


def _block(name: str) -> str:
    """The decoder block that a tensor belongs to: its name up to the first number."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found.group(1) if found else ""


def _block_explained(
    layers: Sequence[tuple[HeaderEntry, HeldWeight]],
    vectors: Sequence[tuple[HeaderEntry, HeldWeight]],
    *,
    biases: Mapping[str, tuple[HeaderEntry, HeldWeight]],
    plus_one: bool,
) -> list[LayerError]:
    """The layers' errors. BadLedger for a vector whose scale no layer carries, and for a layer whose columns carry one that
    nothing explains."""
    gains = {entry.name: _gains(entry, weight) for entry, weight in layers}
    by_vector = {entry.name: _scales(entry, weight, plus_one=plus_one) for entry, weight in vectors}
    carried: set[str] = set()
    explained: dict[str, float] = {}  # layers whose columns a vector explains, or nothing needs to, with their constants
    for name, gain in gains.items():
        others = [theirs for other, theirs in gains.items() if other != name]
        scales = [(vector, scale) for vector, many in by_vector.items() for scale in many]
        for vector, scale in [("", None), *scales]:
            constant = gain.explained_by(scale, others)
            if constant is None:
                continue
            carried.add(vector)
            explained[name] = constant
    for name in [name for name in gains if name not in explained]:
        before = [theirs.reciprocal(explained.get(other, 1.0)) for other, theirs in gains.items() if other != name]
        if all(gains[name].constant(scale) is None for scale in before):
            raise BadLedger(
                f"{name}: the columns of the artifact's {list(gains[name].shape)} are scaled against the source's "
                f"{list(gains[name].shape)}, and no norm, bias or layer before it was divided by that, so their product is not "
                "the source's; the quantizing library folded a scale into one of the two only"
            )
    for name, gain in gains.items():
        bias = biases.get(f"{name.removesuffix('weight')}bias")
        if bias is not None and gain.rows_scaled and not gain.also_scales(*bias, explained.get(name, 1.0)):
            said = (
                _replaced(*bias, others=0)
                if not _same_values(*bias)
                else f"{bias[0].name}: it is the source's {list(gain.rows.shape)}"
            )
            raise BadLedger(f"{said}, and the rows of the layer's weight were divided by a scale that the bias was not")
    for entry, weight in vectors:
        if entry.name not in carried:
            said = _replaced(entry, weight, others=0)
            raise BadLedger(
                said.replace("though the method does not change them", "and no layer that follows holds what it lacks")
            )
    return [
        LayerError(layer=name.removesuffix(".weight"), changed=gain.rest * gain.norm, norm=gain.norm)
        for name, gain in gains.items()
    ]


def _scales(entry: HeaderEntry, weight: HeldWeight, *, plus_one: bool) -> list[Tensor]:
    """What the columns after a kept vector have to be multiplied by, so that the product is the source's: [n], NaN where both are
    zero and any scale will do. `plus_one`: also for norms that add 1 to their weight."""
    import torch

    assert weight.read is not None
    ours, theirs = safetensors_file.tensor(entry).double(), weight.read().double()
    plain = torch.where((ours == 0) & (theirs == 0), torch.nan, ours / theirs)
    return [plain, (1 + ours) / (1 + theirs)] if plus_one and "norm" in entry.name else [plain]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gains:
    """How a quantized weight W' [rows, columns] of the artifact is scaled against the source's W: W' = rows W columns + `rest`,
    the scales by least squares, the median of `rows` being 1. `rest` is the relative size of what is left, the rounding, `norm`
    that of W'; `weight` [columns], 1 in all, is how much a column tells: the part of the squared weights that it holds, less what
    of it is rounding; `rounding` is the relative size of the rounding in the columns, so weighted."""

    shape: tuple[int, ...]
    rows: Tensor
    columns: Tensor
    rest: float
    norm: float
    rounding: float
    weight: Tensor

    @property
    def rows_scaled(self) -> bool:
        return float((self.rows - 1).square().mean().sqrt()) > _allowed(self.rest, self.shape[1])

    def reciprocal(self, constant: float) -> Tensor:
        """What the columns of a layer that follows have to be multiplied by, where the own columns have this constant."""
        return 1 / (self.rows * constant)

    def explained_by(self, scale: Tensor | None, others: Sequence[_Gains]) -> float | None:
        """The common factor of the columns where `scale` explains them, else None. Rows may be scaled less than their rounding
        shows: then the factor is any that one of the others takes back."""
        strict = None if self.rows_scaled else self.constant(scale)
        if strict is not None:
            return strict
        free = self.constant(scale, free=True)
        return free if free is not None and self.taken_back(free, others) else None

    def taken_back(self, constant: float, others: Sequence[_Gains]) -> bool:
        """Whether one of the others takes back the scale of the rows."""
        return any(other.constant(self.reciprocal(constant)) is not None for other in others)

    def also_scales(self, entry: HeaderEntry, weight: HeldWeight, constant: float) -> bool:
        """Whether the layer's bias is scaled as its rows are."""
        assert weight.read is not None
        expected = safetensors_file.tensor(entry).double() * self.rows * constant
        off = (weight.read().double() - expected).norm() / expected.norm().clamp_min(1e-30)
        return float(off) <= _allowed(self.rest, self.shape[1])

    def constant(self, scale: Tensor | None, *, free: bool | None = None) -> float | None:
        """Where the columns are multiplied by `scale` [columns] (None: by nothing), the factor that they have in common beyond
        that: about 1, or any where it is `free` (by default where the rows are scaled, for rows and columns share one constant).
        None where they are not."""
        import torch

        if scale is None:
            scale = torch.ones_like(self.columns)
        if scale.shape != self.columns.shape or not bool((known := ~scale.isnan()).any()):
            return None
        ratio, weight = (self.columns / scale)[known], self.weight[known] / self.weight[known].sum().clamp_min(1e-30)
        middle = float((ratio * weight).sum())
        if not bool(ratio.isfinite().all()) or middle <= 0:
            return None
        spread = float(((ratio / middle - 1).square() * weight).sum()) ** 0.5
        shrunk = 0.0 if (self.rows_scaled if free is None else free) else abs(middle - 1)
        fits = self.rest < 0.9 and shrunk <= max(SHRUNK, self.rest) and spread <= _allowed(self.rounding, self.shape[0])
        return middle if fits else None


def _allowed(rounding: float, others: int) -> float:
    """How far gains may be apart, each fitted over so many weights with this relative rounding."""
    return float(SPREAD + CLIPPED * rounding**2 + DEVIATIONS * rounding / others**0.5)


def _gains(entry: HeaderEntry, weight: HeldWeight) -> _Gains:
    import torch

    assert weight.read is not None
    ours, theirs = safetensors_file.tensor(entry).float(), weight.read().float()
    if ours.shape != theirs.shape:
        ours = ours.t()  # a transposed layer
    rows, columns = torch.ones(len(ours)), torch.ones(ours.shape[1])
    for _ in range(4):
        columns = _gain(ours * rows[:, None], theirs, over=0)
        rows = _gain(ours * columns, theirs, over=1)
        rows = rows / rows.median() if float(rows.median()) else rows
    fitted = ours * rows[:, None] * columns
    share, held = ours.square().sum(dim=0), theirs.square().sum(dim=0)
    rounded = torch.where(held > 0, (theirs - fitted).square().sum(dim=0) / held.clamp_min(1e-30), 1.0).clamp(max=1.0)
    told = share * (1 - rounded)
    tells = (told / told.sum().clamp_min(1e-30)).double()
    return _Gains(
        shape=tuple(theirs.shape),
        rows=rows.double(),
        columns=_gain(ours * rows[:, None], theirs, over=0).double(),
        rest=float((theirs - fitted).norm() / theirs.norm().clamp_min(1e-30)),
        norm=float(theirs.norm()),
        rounding=float((rounded * tells).sum().sqrt()),
        weight=tells,
    )


def _gain(ours: Tensor, theirs: Tensor, *, over: int) -> Tensor:
    """The factors that bring `ours` nearest to `theirs` along the other axis; 1 where it is zero."""
    import torch

    squares = ours.square().sum(dim=over)
    return torch.where(squares > 0, (ours * theirs).sum(dim=over) / squares.clamp_min(1e-30), torch.ones_like(squares))
