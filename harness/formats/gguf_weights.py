"""The weights that a GGUF file stands for, by the `gguf` package's own numpy code: the independent side of the reload check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.formats import gguf_reader
from harness.formats.gguf_export import Decoder
from harness.formats.gguf_names import halved, source_name

if TYPE_CHECKING:
    from torch import Tensor


def unpacked(path: Path, model: Decoder) -> dict[str, Tensor]:
    """Source tensor name -> float32 tensor: the file's blocks dequantized, rows put back into the source's order."""
    import gguf.quants
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType

    raw = np.memmap(path, dtype=np.uint8, mode="r")
    state = {}
    for tensor in gguf_reader.header(path).tensors:
        name = source_name(tensor.name)
        if name is None:
            continue
        data = raw[tensor.offset : tensor.offset + tensor.bytes].reshape(*tensor.shape[:-1], -1)
        if tensor.type in ("F32", "F16"):
            values = data.view(np.float32 if tensor.type == "F32" else np.float16).astype(np.float32)
        else:
            values = gguf.quants.dequantize(np.ascontiguousarray(data), GGMLQuantizationType[tensor.type])
        weight = torch.from_numpy(np.array(values, dtype=np.float32)).reshape(tensor.shape)
        heads = model.rotated(name)
        state[name] = halved(weight, heads).contiguous() if heads else weight
    return state
