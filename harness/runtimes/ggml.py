"""ggml's own block quantizers on a matrix in memory: what `llama_model_quantize` does to one tensor, without a file."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Unsupported
from harness.formats.gguf_types import BLOCKS, TYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NUMBERS = {block.name: number for number, block in TYPES.items()}


def rounded(rows: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """What the blocks of type `kind` stand for that ggml makes of `rows` [n, columns], by the `gguf` package's own reading.
    `importance`: one number per column. The columns must divide into the type's blocks."""
    import gguf.quants
    import numpy as np
    from gguf import GGMLQuantizationType

    call = _library().ggml_quantize_chunk
    floats, wide = ctypes.POINTER(ctypes.c_float), ctypes.c_int64
    call.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, wide, wide, wide, floats]
    call.restype = ctypes.c_size_t
    held = np.ascontiguousarray(rows, np.float32)
    count, columns = held.shape
    block = BLOCKS[kind]
    packed = np.empty((count, columns // block.weights * block.size), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    written = call(
        _NUMBERS[kind],
        held.ctypes.data_as(floats),
        packed.ctypes.data_as(ctypes.c_void_p),
        0,
        count,
        columns,
        None if weights is None else weights.ctypes.data_as(floats),
    )
    if written != packed.size:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind} for a matrix of {count} x {columns}, not {packed.size}")
    numbers: NDArray[np.float32] = gguf.quants.dequantize(packed, GGMLQuantizationType[kind])
    return numbers


def _library() -> ctypes.CDLL:
    """The library that llama-cpp-python brings, and has loaded itself."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    found = sorted(folder.glob("*ggml-base.*"), key=lambda path: len(path.name))
    if not found:
        raise Unsupported(f"{folder} holds no ggml-base, by which layers are rounded alone; install llama-cpp-python again")
    return ctypes.CDLL(str(found[0]))
