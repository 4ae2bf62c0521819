"""The weights that a GGUF file stands for, by the `gguf` package's own numpy code: the independent side of the reload check.

Two types that the package does not unpack are unpacked here: Q1_0 (a scale and a sign for each weight) and Q2_0 (a scale and 2
bits for each weight, of which 1 stands for zero).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.formats import gguf_reader
from harness.formats.gguf_export import Decoder
from harness.formats.gguf_names import halved, source_name
from harness.formats.gguf_reader import GgufTensor
from harness.formats.gguf_types import BLOCKS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


def unpacked(path: Path, model: Decoder) -> dict[str, Tensor]:
    """Source tensor name -> float32 tensor: the file's blocks dequantized, rows put back into the source's order."""
    named = {tensor: source_name(tensor.name) for tensor in gguf_reader.header(path).tensors}
    return {name: _wide(path, tensor, name, model) for tensor, name in named.items() if name is not None}


def values(path: Path, tensor: GgufTensor, name: str, model: Decoder) -> Tensor:
    """One tensor of type F32, F16 or BF16 in its own dtype, rows in the order of the source's tensor `name`."""
    import torch

    kept = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.type]
    return _wide(path, tensor, name, model).to(kept)


def nonfinite(path: Path) -> list[str]:
    """The tensors of a file, and of its parts, that stand for NaN or infinity; reads and dequantizes them all."""
    import numpy as np

    found = []
    for part in gguf_reader.parts(path):
        with part.open("rb") as file:
            tensors = gguf_reader.read(file, part.stat().st_size, str(part)).tensors
        found += [tensor.name for tensor in tensors if not np.isfinite(_numbers(part, tensor)).all()]
    return sorted(found)


def _wide(path: Path, tensor: GgufTensor, name: str, model: Decoder) -> Tensor:
    import numpy as np
    import torch

    weight = torch.from_numpy(np.array(_numbers(path, tensor), dtype=np.float32)).reshape(tensor.shape)
    heads = model.rotated(name)
    return halved(weight, heads).contiguous() if heads else weight


def _numbers(path: Path, tensor: GgufTensor) -> NDArray[np.float32]:
    """What the blocks of a tensor stand for, in the file's order."""
    import gguf.quants
    import numpy as np
    from gguf import GGMLQuantizationType

    raw = np.memmap(path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(tensor.bytes,))
    data = raw.reshape(*tensor.shape[:-1], -1)
    if tensor.type in ("F32", "F16"):
        return data.view(np.float32 if tensor.type == "F32" else np.float16).astype(np.float32)
    if tensor.type in _BITS:
        return _plain_blocks(data, tensor.type)
    numbers: NDArray[np.float32] = gguf.quants.dequantize(np.ascontiguousarray(data), GGMLQuantizationType[tensor.type])
    return numbers


_BITS = {"Q1_0": 1, "Q2_0": 2}
"""Types whose blocks are a float16 scale and the codes of their weights, the first one in the lowest bits of the first byte."""


def _plain_blocks(data: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """[rows, bytes] of blocks -> [rows, weights]."""
    import numpy as np

    bits, block = _BITS[kind], BLOCKS[kind]
    blocks = data.reshape(-1, block.size)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    places = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (blocks[:, 2:, None] >> places & (2**bits - 1)).reshape(len(blocks), block.weights).astype(np.float32)
    levels = 2 * codes - 1 if bits == 1 else codes - 1
    numbers: NDArray[np.float32] = (scale * levels).reshape(*data.shape[:-1], -1)
    return numbers
