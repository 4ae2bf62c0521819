"""A model whose weights are published packed, as the plain checkpoint that they stand for: what every method starts from.

Only BitNet's format says all of a weight that was trained (-1, 0 and 1 times one scale), so that unpacking it gives the model and
no approximation of it. The unpacked checkpoint lies in the cache, once for each content. Run as a child process (`python -m
harness.models.unpacked PACKED FOLDER`), because it needs torch.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.files import draft_folder, sha256
from harness.formats import bitnet_file, config_json, quantization_config, safetensors_file
from harness.spec import digest

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Raised when the same packed checkpoint gives another plain one."""


def folder(packed: Path, cache: Path) -> Path:
    """The plain checkpoint of the packed one, made once per content in the cache. BadInput says why there is none."""
    target = _place(packed, cache)
    if (target / "config.json").is_file():
        return target
    with draft_folder(target) as draft:
        command = [sys.executable, "-m", "harness.models.unpacked", str(packed), str(draft)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BadInput(f"{packed}: cannot be unpacked: {last}")
    return target


def known(packed: Path, cache: Path) -> Path | None:
    """The plain checkpoint where the cache has it."""
    target = _place(packed, cache)
    return target if (target / "config.json").is_file() else None


def _place(packed: Path, cache: Path) -> Path:
    files = {path.name: sha256(path) for path in sorted(packed.iterdir()) if path.is_file()}
    return cache / "unpacked" / digest({"files": files, "version": VERSION})[:32]


def config_of(packed: Path) -> dict[str, object]:
    """The config of the plain checkpoint: the packed one's without its quantization."""
    config = {key: value for key, value in config_json.read(packed).items() if key != quantization_config.KEY}
    return {**config, "dtype": "bfloat16"}


def tensors(packed: Path) -> dict[str, tuple[str, list[int]]]:
    """Every tensor of the plain checkpoint: name -> (safetensors dtype, shape), from the headers alone."""
    layers = bitnet_file.packed_layers(packed)
    listed = {}
    for name, entry in safetensors_file.checkpoint(packed).items():
        layer, _, part = name.rpartition(".")
        if layer not in layers or part != bitnet_file.SCALE:
            listed[name] = ("BF16", list(bitnet_file.shape(entry) if layer in layers and part == "weight" else entry.shape))
    return listed


def unpack(packed: Path, out: Path) -> None:
    """Writes the plain checkpoint in bfloat16, one tensor at a time, with the tokenizer and all else that lies beside;
    config.json last."""
    listed = [(name, dtype, shape) for name, (dtype, shape) in tensors(packed).items()]

    def parts() -> Iterator[Tensor]:
        import torch

        for _, tensor in bitnet_file.dequantized(packed):
            yield tensor.to(torch.bfloat16)

    safetensors_file.write(out / safetensors_file.MODEL, listed, parts())
    for path in sorted(packed.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copyfile(path, out / path.name)
    config_json.write(config_of(packed), out)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
