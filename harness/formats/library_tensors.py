"""An artifact in a library's own terms, where its own save is a pickle or cannot be loaded again: the library's packed tensors as
safetensors, a JSON file with what is needed to rebuild its layers from them, and the source's config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.formats import safetensors_file

if TYPE_CHECKING:
    from torch import Tensor

    from harness.spec import Json


def write(folder: Path, state: Mapping[str, Tensor], *, settings: Mapping[str, Json], name: str, source: Path) -> None:
    """Writes all three into `folder`: `state`, the `settings` as the JSON file `name`, the config.json that lies in `source`."""
    safetensors_file.save(state, folder / safetensors_file.MODEL)
    (folder / name).write_text(json.dumps(settings), encoding="utf-8")
    shutil.copyfile(source / "config.json", folder / "config.json")


def read(folder: Path, *, name: str, device: str) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """The settings and the tensors of an artifact that `write` made."""
    return settings(folder, name), safetensors_file.tensors(folder, device=device)


def settings(folder: Path, name: str) -> dict[str, Json]:
    """The settings of an artifact that `write` made, from its JSON file `name`."""
    held: dict[str, Json] = json.loads((folder / name).read_text(encoding="utf-8"))
    return held
