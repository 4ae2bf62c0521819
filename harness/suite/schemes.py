"""The methods of a suite, multiplied out: every scheme with its options checked and a label that is unique and short."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness import plugins
from harness.errors import BadInput, UnknownName
from harness.methods import METHODS, endpoint
from harness.methods.base import Method, resolve_options
from harness.models import corpora
from harness.models.corpora import Corpus
from harness.spec import Json, Scheme
from harness.suite.file import Calibration, Suite


def schemes_of(suite: Suite, base: Path, where: Any) -> tuple[list[Scheme], dict[str, Corpus]]:
    """All schemes of the matrix in suite order, with labels that are unique and short."""
    calibrations: dict[str, Corpus] = {}
    found: list[tuple[Scheme, dict[str, Json]]] = []
    grids: list[tuple[str, Mapping[str, Json], Sequence[str | int]]] = []
    for name, entry in suite.methods.items():
        if isinstance(entry, list):
            grids.extend((name, grid, ("methods", name, index)) for index, grid in enumerate(entry))
        else:
            grids.append((name, entry or {}, ("methods", name)))
    for index, extra in enumerate(suite.include):
        if "method" not in extra:
            raise BadInput(f"{where('include', index)}: an included cell names its method: include: [{{method: gptq, bits: 4}}]")
        grids.append((str(extra["method"]), {k: v for k, v in extra.items() if k != "method"}, ("include", index)))
    for name, grid, keys in grids:
        if name not in METHODS:
            raise plugins.unknown("method", name, where(*keys))
        if METHODS[name].prequantized:
            if grid:
                raise BadInput(f"{where(*keys)}: {name} takes no options: its scheme is read from the checkpoint's config.json")
            continue  # its cells follow from the models
        for given in _product(name, grid, suite, where(*keys)):
            scheme = _scheme(METHODS[name], given, suite, base, where(*keys), calibrations)
            if scheme.identity() not in [s.identity() for s, _ in found]:
                found.append((scheme, given))
    return _labelled([s for s, _ in found]), calibrations


def _product(name: str, grid: Mapping[str, Json], suite: Suite, where: str) -> Iterator[dict[str, Json]]:
    method = METHODS[name]
    axes = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
    if method.served:
        axes.setdefault("bits", [0.0])
        for bits in axes["bits"]:
            if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 0 <= bits <= 32:
                raise BadInput(f"{where}: {name}: bits: {bits!r} is no bit width; leave it out where it is not known")
    elif "bits" in axes:
        for bits in axes["bits"]:
            if bits not in method.bits:
                offered = ", ".join(f"{b:g}" for b in method.bits)
                raise BadInput(f"{where}: {name} does not offer {bits} bits; it offers {offered}: write bits: [{offered}]")
    elif method.native or suite.bits is None:
        axes["bits"] = list(method.bits)
    else:
        axes["bits"] = list(suite.bits)
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _scheme(
    method: Method, given: Mapping[str, Json], suite: Suite, base: Path, where: str, calibrations: dict[str, Corpus]
) -> Scheme:
    options = {k: v for k, v in given.items() if k not in {"bits", "calibration"}}
    for name, value in options.items():
        if name not in method.options:
            raise UnknownName(
                f"option of {method.name}", name, [*method.options, "bits", *(["calibration"] * method.calibrated)], where
            )
        option = method.options[name]
        if option.choices is not None and value not in option.choices:
            allowed = ", ".join(map(str, option.choices))
            raise BadInput(f"{where}: {method.name} does not take {name}: {value}; it takes {allowed}")
        kinds = option.types or ((type(option.default),) if option.default is not None else ())
        if kinds and option.choices is None and not isinstance(value, kinds):
            raise BadInput(f"{where}: {method.name}: {name}: {value!r} is not {' or '.join(k.__name__ for k in kinds)}")
    resolved = resolve_options(method, options, float(given["bits"]))
    for name, option in method.options.items():
        why = None if option.check is None else option.check(resolved[name])
        if why is not None:  # the value is not repeated: it may be a secret that went to the wrong place
            raise BadInput(f"{where}: {method.name}: {name}: {why}")
    if method.calibrated:
        try:
            wish = Calibration.model_validate({**suite.calibration.model_dump(), **(given.get("calibration") or {})})
        except ValidationError as error:
            raise BadInput(f"{where}: calibration: {error.errors()[0]['msg']}") from None
        source = corpora.corpus(wish.corpus, base, "calibrate", where)
        calibrations[source.name] = source
        resolved["calibration"] = {**wish.model_dump(), "corpus": source.name}
    elif "calibration" in given:
        raise BadInput(f"{where}: {method.name} takes no calibration data; remove `calibration`")
    if method.served:
        label = endpoint.label(resolved, float(given["bits"]))
        return Scheme(
            method=method.name,
            bits=float(given["bits"]),
            options={k: v for k, v in resolved.items() if k != "name"},  # what people call it changes no answer
            label=label,
        )
    return Scheme(method=method.name, bits=float(given["bits"]), options=resolved)


def _labelled(schemes: Sequence[Scheme]) -> list[Scheme]:
    """`gptq 4-bit g64`, then whatever differs from the method's defaults, then whatever still tells twins apart."""
    named = [replace(s, label=_label(s)) for s in schemes]
    for scheme_index, scheme in enumerate(named):
        twins = [s for s in named if s.label == scheme.label]
        if len(twins) > 1:
            differing = sorted(k for k in scheme.options if len({str(t.options.get(k)) for t in twins}) > 1)
            extra = " ".join(f"{k}={_short(scheme.options[k])}" for k in differing)
            named[scheme_index] = replace(scheme, label=f"{scheme.label} {extra}")
    return named


def _label(scheme: Scheme) -> str:
    method = METHODS[scheme.method]
    if method.native:
        return method.name
    if method.served:
        return scheme.label
    parts = [method.name, f"{scheme.bits:g}-bit"]
    for name, option in method.options.items():
        value = scheme.options.get(name)
        if name == "group_size":
            if scheme.bits >= 16:  # unquantized: nothing has a scale
                continue
            parts.append({-1: "per-channel", None: "per-channel", 0: "per-layer"}.get(value, f"g{value}"))
        elif value != option.at(scheme.bits) or (
            option.bits is not None and scheme.bits in option.bits and isinstance(value, str)
        ):
            switched_off = value is False or (isinstance(value, (int, float)) and value == 0)
            parts.append(name if value is True else f"no-{name}" if switched_off else _short(value))
    return " ".join(parts)


def _short(value: Json) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}:{_short(v)}" for k, v in sorted(value.items()))
    return f"{value:g}" if isinstance(value, float) else str(value)
