"""`target_bits` of a suite: cells whose layers have widths of their own, so that all of them together take so many bits per
weight, scales and zero points included.

`gptq: {target_bits: [3.5, 4.0], group_size: 64}` stands beside `bits`, or instead of it. `widths` says which may be chosen,
`from` how; the method's other options are the same for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.errors import BadInput
from harness.methods import METHODS
from harness.methods.base import Method, Mixing, Width, resolve_options
from harness.models import sensitivity
from harness.spec import MIXTURE, Scheme
from harness.suite.mistakes import shown
from harness.suite.options import CHANNEL, WHOLE

TARGET = "target_bits"
KEYS = (TARGET, "widths", "from")
Axes = Mapping[str, Sequence[object]]


def parts(method: Method, axes: Axes, where: str) -> list[tuple[dict[str, Sequence[object]], bool]]:
    """The axes of an entry's cells of one width, and those of its mixtures (True), whose `bits` are the targets. BadInput where
    the method has no mixtures, or nothing but their settings is said."""
    if TARGET not in axes:
        lonely = next((key for key in KEYS if key in axes), None)
        if lonely is not None and method.mixing is not None:
            raise BadInput(f"{where}: {method.name}: {lonely} is of a mixture, and there is none; add target_bits: [4.0]")
        return [(dict(axes), False)]
    mixing = _mixing(method, where)
    targets = [_target(each, method, where) for each in axes[TARGET]]
    own = {key: values for key, values in axes.items() if key not in (*KEYS, "bits")}
    if mixing.options:
        _only(own, mixing, method, where)
    found: list[tuple[dict[str, Sequence[object]], bool]] = []
    if "bits" in axes:
        shared = own if method.calibrated else {key: values for key, values in own.items() if key != "calibration"}
        found.append(({**shared, "bits": axes["bits"]}, False))
    choices = {"widths": _sets(axes["widths"], mixing, method, where)} if "widths" in axes else {}
    origins = {"from": axes["from"]} if "from" in axes else {}
    return [*found, ({**own, **choices, **origins, "bits": targets}, True)]


def one_of_both(extra: Mapping[str, object], where: str) -> None:
    """BadInput for an entry of `include`, one cell, that is both of one width and a mixture."""
    if "bits" in extra and TARGET in extra:
        raise BadInput(
            f"{where}: bits: {shown(extra['bits'])} is one width for all layers, and target_bits: {shown(extra[TARGET])} a "
            "mixture; an included cell is one of the two: keep one"
        )


def _mixing(method: Method, where: str) -> Mixing:
    if method.mixing is None:
        known = ", ".join(name for name, row in METHODS.items() if row.mixing is not None)
        raise BadInput(f"{where}: {method.name} has no mixtures, so no target_bits; those that have: {known}. Write bits: [...]")
    return method.mixing


def _target(value: object, method: Method, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 16:
        raise BadInput(
            f"{where}: {method.name}: target_bits: {shown(value)} is no number of bits per weight; write target_bits: [3.5]"
        )
    return float(value)


def _only(own: Axes, mixing: Mixing, method: Method, where: str) -> None:
    """BadInput for an option that a mixture of this method decides itself."""
    for name in own:
        if name in method.options and name not in mixing.options:
            raise BadInput(f"{where}: {method.name}: {name} says one thing for all layers, and target_bits chooses it; keep one")


def _sets(written: Sequence[object], mixing: Mixing, method: Method, where: str) -> list[tuple[Width, ...]]:
    """`widths: [2, 4, 8]` is one set, `widths: [[2, 4], [3, 4, 8]]` two of them."""
    sets = written if all(isinstance(each, list) for each in written) else [list(written)]
    found = []
    for each in sets:
        assert isinstance(each, list)
        unknown = [width for width in each if isinstance(width, bool) or width not in mixing.known]
        if unknown or len(set(each)) < 2:
            what = f"{shown(unknown[0])} is no width of a mixture" if unknown else f"{shown(each)} leaves nothing to choose"
            known = ", ".join(map(str, mixing.known))
            raise BadInput(f"{where}: {method.name}: widths: {what}; name two or more of {known}: widths: [{known}]")
        found.append(tuple(width for width in mixing.known if width in each))
    return found


def scheme(method: Method, plain: Scheme, given: Mapping[str, object], where: str) -> Scheme:
    """The scheme of a mixture. BadInput for a target beyond what its widths reach, and for another way of choosing."""
    mixing = _mixing(method, where)
    chosen = given.get("from", mixing.ways[0])
    if chosen not in mixing.ways:
        known = " or ".join(mixing.ways)
        raise BadInput(f"{where}: {method.name}: from: {shown(chosen)} is no way of choosing its widths; write from: {known}")
    widths = given.get("widths", mixing.widths)
    assert isinstance(widths, tuple)
    each = [mixing.bits(width, plain.options) for width in widths]
    if not min(each) <= plain.bits <= max(each):
        side, named = "below" if plain.bits < min(each) else "above", ", ".join(map(str, widths))
        raise BadInput(
            f"{where}: {method.name}: target_bits: {plain.bits:g} is {side} what widths {named} reach, scales and zero points "
            f"included: about {min(each):.2f} to {max(each):.2f}; choose a target between, or other widths"
        )
    said = {"from": chosen, "widths": list(widths), "version": sensitivity.VERSION}
    options = {name: value for name, value in plain.options.items() if not mixing.options or name in mixing.options}
    return replace(plain, options={**options, MIXTURE: said})


def uniform(method: Method, given: Mapping[str, object], bits: float) -> dict[str, object]:
    """What a cell of one width is given that differs from a mixture in nothing else."""
    other = [] if method.mixing is None else [name for name, width in method.mixing.only_at.items() if width != bits]
    own = {**{name: value for name, value in given.items() if name not in (*KEYS, *other)}, "bits": bits}
    return own if method.calibrated else {name: value for name, value in own.items() if name != "calibration"}


def beside(method: Method, target: float, given: Mapping[str, object]) -> list[float]:
    """The widths of one-width cells on either side of a target: the widest within it, and the narrowest beyond. One that takes
    just as many bits is both."""
    sizes = {}
    offered = method.bits if method.mixing is None else method.mixing.beside or method.bits
    for bits in (bits for bits in offered if bits < 16):
        plain = uniform(method, given, bits)
        meant = {n: WHOLE if n == "group_size" and v == CHANNEL else v for n, v in plain.items()}
        known = {n: v for n, v in meant.items() if n in method.options and isinstance(v, (bool, int, float, str))}
        scheme = Scheme(method=method.name, bits=bits, options=resolve_options(method, known, bits))
        sizes[bits] = method.bits_per_weight(scheme)
    below = [bits for bits, size in sizes.items() if size <= target]
    above = [bits for bits, size in sizes.items() if size >= target]
    found = [max(below, key=lambda bits: sizes[bits])] if below else []
    found += [min(above, key=lambda bits: sizes[bits])] if above else []
    return sorted(set(found), reverse=True)


def words(method: Method, scheme: Scheme) -> list[str]:
    """What a label says before the bits: `gptq mixed 3.5-bit g64`."""
    return [] if scheme.mixture is None else ["mixed"]


def more_words(method: Method, scheme: Scheme) -> list[str]:
    """What a label says of widths, and of a way of choosing them, that are not the method's default ones."""
    if scheme.mixture is None or method.mixing is None:
        return []
    widths, way = tuple(scheme.mixture["widths"]), str(scheme.mixture["from"])
    found = [f"of {','.join(map(str, widths))}"] if widths != method.mixing.widths else []
    return found + ([f"from {way}"] if way != method.mixing.ways[0] else [])
