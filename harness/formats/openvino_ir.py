"""What an OpenVINO IR stores, read from its XML and .bin without OpenVINO: every constant, its place, and what it stands for.

A constant keeps the name of the parameter that it came from (`self.m.` + the parameter's name); compressing it to 16 bits adds
`_compressed`, NNCF puts `/scale` and `/zero_point` beside it and `_lora_A`, `_lora_B` behind the name of a corrected product.
Four-bit codes lie two to a byte, the lower half first. Constants with the same bytes are stored once, and counted once.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import Role, StoredTensor
from harness.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

XML, BIN = "openvino_model.xml", "openvino_model.bin"
"""The names that OpenVINO's own tools look for."""

_PARAMETER, _PRODUCT = "self.m.", "__module.m."
_SUFFIXES: dict[str, Role] = {"/scale": "scale", "/zero_point": "zero"}
_ADAPTERS = ("_lora_A", "_lora_B")
_NUMPY = {"f32": "<f4", "f16": "<f2", "i8": "<i1", "u8": "<u1", "i32": "<i4", "i64": "<i8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant. `parameter` is the source's name of what it belongs to ('' if it is none), `role` its part in that."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    parameter: str
    role: Role

    @property
    def adapter(self) -> str | None:
        """Which of the two small matrices it is that correct a product; None where it is neither."""
        return next((suffix for suffix in _ADAPTERS if suffix in self.name), None)


def constants(folder: Path) -> list[Constant]:
    """All constants of the IR in `folder`, each stretch of the .bin once. BadInput when the XML is damaged or does not fit."""
    path = folder / XML
    try:
        layers = xml.etree.ElementTree.parse(path).getroot().find("layers")
        size = (folder / BIN).stat().st_size
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        raise BadInput(f"{path}: no readable OpenVINO model ({error}); delete the artifact and run again") from None
    by_place: dict[int, Constant] = {}
    for layer in layers if layers is not None else ():
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        name, offset, count = str(layer.get("name")), int(str(data.get("offset"))), int(str(data.get("size")))
        if offset < 0 or count < 0 or offset + count > size:
            raise BadInput(f"{path}: the constant {name} lies outside of {BIN}; delete the artifact and run again")
        shape = tuple(int(part) for part in str(data.get("shape") or "").split(",") if part.strip())
        parameter, role = _meaning(name)
        constant = Constant(
            name=name, type=str(data.get("element_type")), shape=shape, offset=offset, bytes=count, parameter=parameter, role=role
        )
        known = by_place.get(offset)
        if known is None or (parameter and not known.parameter):
            by_place[offset] = constant
    return sorted(by_place.values(), key=lambda c: c.offset)


def _meaning(name: str) -> tuple[str, Role]:
    stem = name.removesuffix("_compressed")
    role: Role = "weight"
    for suffix, meant in _SUFFIXES.items():
        if stem.endswith(suffix):
            stem, role = stem.removesuffix(suffix), meant
    if stem.startswith(_PARAMETER):
        return stem.removeprefix(_PARAMETER), role
    if stem.startswith(_PRODUCT) and stem.endswith(_ADAPTERS):
        return f"{linear(stem)}.weight", role
    return "", "other"


def linear(name: str) -> str:
    """The source's layer that an operation's name belongs to: `__module.m.` + layer + `/aten::linear/...`; '' for others."""
    return name.removeprefix(_PRODUCT).partition("/")[0] if name.startswith(_PRODUCT) and "/aten::linear" in name else ""


def ledger(folder: Path, layers: Collection[str]) -> list[StoredTensor]:
    """One row per stored constant; what belongs to the weights of `layers` has its role, everything else is `other`."""
    rows = []
    for constant in constants(folder):
        layer = constant.parameter.removesuffix(".weight")
        mine = layer in layers and constant.parameter.endswith(".weight")
        rows.append(
            StoredTensor(
                name=constant.name, layer=layer if mine else "", role=constant.role if mine else "other", bits=8 * constant.bytes
            )
        )
    return rows


def unpacked(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Parameter -> float32 numpy array [outputs, inputs]: codes less zero points, times scales, groups joined again; adapters
    of a corrected product added. Only what keeps its name in the IR: matrices do, vectors are folded into other shapes."""
    import numpy as np

    raw = np.memmap(folder / BIN, dtype=np.uint8, mode="r")
    parts: dict[str, dict[Role, NDArray[np.float32]]] = {}
    adapters: dict[str, dict[str, dict[Role, NDArray[np.float32]]]] = {}
    for constant in constants(folder):
        if not constant.parameter:
            continue
        values = _values(raw[constant.offset : constant.offset + constant.bytes], constant)
        adapter = constant.adapter
        place = parts if adapter is None else adapters.setdefault(constant.parameter, {})
        place.setdefault(adapter or constant.parameter, {})[constant.role] = values
    state = {name: _dequantized(part) for name, part in parts.items()}
    for name, pair in adapters.items():
        state[name] = state[name] + _dequantized(pair["_lora_B"]) @ _dequantized(pair["_lora_A"])
    return state


def values(folder: Path, constant: Constant) -> NDArray[np.float32]:
    """What one constant holds, as float32 in its own shape."""
    import numpy as np

    raw = np.memmap(folder / BIN, dtype=np.uint8, mode="r")
    return _values(raw[constant.offset : constant.offset + constant.bytes], constant)


def _values(raw: NDArray[np.uint8], constant: Constant) -> NDArray[np.float32]:
    import numpy as np

    if constant.type in ("i4", "u4"):
        codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1).astype(np.int8)
        if constant.type == "i4":
            codes[codes > 7] -= 16
        return codes[: math.prod(constant.shape)].reshape(constant.shape).astype(np.float32)
    if constant.type not in _NUMPY:
        raise BadInput(f"the constant {constant.name} is {constant.type}, which this version cannot unpack")
    return raw.view(_NUMPY[constant.type]).reshape(constant.shape).astype(np.float32)


def _dequantized(part: Mapping[Role, NDArray[np.float32]]) -> NDArray[np.float32]:
    values = part["weight"]
    if "zero" in part:
        values = values - part["zero"]
    if "scale" in part:
        values = values * part["scale"]
    return values.reshape(len(values), -1)
