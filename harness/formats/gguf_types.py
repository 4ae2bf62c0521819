"""The block types of GGUF tensors, with their bits, and the mixtures of types that llama.cpp's file types name."""

from __future__ import annotations

from dataclasses import dataclass

Mixture = tuple[str, dict[str, tuple[str, float]]]
"""The type of most linear layers, and where others are: part of a block -> (type, share of the layers)."""

_MORE = 0.5  # llama.cpp's use_more_bits: the first and last eighth of the layers, and every third between

_EARLY = 1 / 8

FILE_TYPES: dict[str, tuple[float, Mixture]] = {
    "F32": (32, ("F32", {})),
    "BF16": (16, ("BF16", {})),
    "F16": (16, ("F16", {})),
    "Q8_0": (8, ("Q8_0", {})),
    "Q6_K": (6, ("Q6_K", {})),
    "Q5_K_M": (5, ("Q5_K", {"v": ("Q6_K", _MORE), "down": ("Q6_K", _MORE)})),
    "Q5_K_S": (5, ("Q5_K", {})),
    "Q5_1": (5, ("Q5_1", {})),
    "Q5_0": (5, ("Q5_0", {})),
    "Q4_K_M": (4, ("Q4_K", {"v": ("Q6_K", _MORE), "down": ("Q6_K", _MORE)})),
    "Q4_K_S": (4, ("Q4_K", {"v": ("Q5_K", _EARLY), "down": ("Q5_K", _EARLY)})),
    "Q4_1": (4, ("Q4_1", {})),
    "Q4_0": (4, ("Q4_0", {})),
    "IQ4_NL": (4, ("IQ4_NL", {})),
    "IQ4_XS": (4, ("IQ4_XS", {})),
    "MXFP4": (4, ("MXFP4", {})),
    "NVFP4": (4, ("NVFP4", {})),
    "Q3_K_L": (3, ("Q3_K", {"v": ("Q5_K", 1), "down": ("Q5_K", 1), "o": ("Q5_K", 1)})),
    "Q3_K_M": (3, ("Q3_K", {"v": ("Q4_K", 1), "down": ("Q4_K", 1), "o": ("Q4_K", 1)})),
    "Q3_K_S": (3, ("Q3_K", {})),
    "IQ3_M": (3, ("IQ3_S", {"v": ("Q4_K", 1), "o": ("Q4_K", 1), "down": ("Q4_K", _EARLY)})),
    "IQ3_S": (3, ("IQ3_S", {})),
    "IQ3_XS": (3, ("IQ3_S", dict.fromkeys(("q", "k"), ("IQ3_XXS", 1)) | dict.fromkeys(("gate", "up"), ("IQ3_XXS", 0.75)))),
    "IQ3_XXS": (3, ("IQ3_XXS", {"q": ("IQ2_S", 1), "k": ("IQ2_S", 1), "o": ("IQ3_S", 1)})),
    "Q2_K": (2, ("Q2_K", {"v": ("Q3_K", 1), "down": ("Q3_K", 1), "o": ("Q3_K", 1)})),
    "Q2_K_S": (2, ("Q2_K", {"down": ("Q4_K", _EARLY)})),
    "IQ2_M": (2, ("IQ2_S", {"v": ("IQ3_S", 1), "o": ("IQ3_S", 1), "down": ("IQ3_S", _EARLY)})),
    "IQ2_S": (2, ("IQ2_XS", {"v": ("IQ3_S", 1), "o": ("IQ3_S", 1), "down": ("IQ3_S", _EARLY)})),
    "IQ2_XS": (2, ("IQ2_XS", {"v": ("Q2_K", 1), "down": ("Q2_K", _EARLY)})),
    "IQ2_XXS": (2, ("IQ2_XXS", {"v": ("Q2_K", 1), "down": ("Q2_K", _EARLY)})),
    "TQ2_0": (2, ("TQ2_0", {})),
    "Q2_0": (2, ("Q2_0", {})),
    "TQ1_0": (1.58, ("TQ1_0", {})),
    "IQ1_M": (1, ("IQ1_M", {"v": ("Q2_K", 1), "o": ("IQ2_XXS", 1), "down": ("Q2_K", _EARLY)})),
    "Q1_0": (1, ("Q1_0", {})),
    "IQ1_S": (1, ("IQ1_S", {"v": ("Q2_K", 1), "o": ("IQ2_XXS", 1), "down": ("Q2_K", _EARLY)})),
}
"""File type -> (nominal bits, mixture as llama.cpp chooses it for a dense model, llama-quant.cpp)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One ggml type: `weights` consecutive numbers of a row are stored in `size` bytes, scales included."""

    name: str
    weights: int
    size: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size / self.weights


def _block(name: str, weights: int, size: int) -> Block:
    return Block(name=name, weights=weights, size=size)


TYPES: dict[int, Block] = {
    0: _block("F32", 1, 4),
    1: _block("F16", 1, 2),
    30: _block("BF16", 1, 2),
    # blocks of 32: a 16-bit scale (two in the _1 types), fifth bits apart
    2: _block("Q4_0", 32, 2 + 16),
    3: _block("Q4_1", 32, 4 + 16),
    6: _block("Q5_0", 32, 2 + 4 + 16),
    7: _block("Q5_1", 32, 4 + 4 + 16),
    8: _block("Q8_0", 32, 2 + 32),
    20: _block("IQ4_NL", 32, 2 + 16),
    # super-blocks of 256: codes, packed scales of the 8 or 16 inner blocks, one or two 16-bit scales
    10: _block("Q2_K", 256, 16 + 64 + 4),
    11: _block("Q3_K", 256, 32 + 64 + 12 + 2),
    12: _block("Q4_K", 256, 4 + 12 + 128),
    13: _block("Q5_K", 256, 4 + 12 + 32 + 128),
    14: _block("Q6_K", 256, 128 + 64 + 16 + 2),
    16: _block("IQ2_XXS", 256, 2 + 64),
    17: _block("IQ2_XS", 256, 2 + 64 + 8),
    22: _block("IQ2_S", 256, 2 + 32 + 32 + 8 + 8),
    18: _block("IQ3_XXS", 256, 2 + 96),
    21: _block("IQ3_S", 256, 2 + 64 + 8 + 32 + 4),
    19: _block("IQ1_S", 256, 2 + 32 + 16),
    29: _block("IQ1_M", 256, 32 + 16 + 8),
    23: _block("IQ4_XS", 256, 2 + 2 + 4 + 128),
    34: _block("TQ1_0", 256, 48 + 4 + 2),
    35: _block("TQ2_0", 256, 64 + 2),
    39: _block("MXFP4", 32, 1 + 16),
    40: _block("NVFP4", 64, 4 + 32),
    41: _block("Q1_0", 128, 2 + 16),
    42: _block("Q2_0", 64, 2 + 16),
    # what no weights are published in, and tables may be
    9: _block("Q8_1", 32, 4 + 4 + 32),
    15: _block("Q8_K", 256, 4 + 256 + 32),
    24: _block("I8", 1, 1),
    25: _block("I16", 1, 2),
    26: _block("I32", 1, 4),
    27: _block("I64", 1, 8),
    28: _block("F64", 1, 8),
}
"""ggml's type number -> the block it stores."""

BLOCKS = {block.name: block for block in TYPES.values()}

FILE_TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""general.file_type -> llama.cpp's name (llama.h, llama_ftype)."""
