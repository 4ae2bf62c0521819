"""All weights of a source model trained a little further, kept as a model's folder of their own.

`trained` gives a view (models/source.py) of the trained weights under the source's own names, in the dtypes that every artifact
keeps (bfloat16). It is made once for a source, a text and a recipe, and read by every cell that starts from it: `ft` is these
weights, `ft+ptq` rounds them, and what is made of them is compared with them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.decode import decode
from harness.errors import Unsupported
from harness.files import draft_folder, write_atomically
from harness.formats import safetensors_file
from harness.formats.safetensors_file import brief
from harness.models import build, source
from harness.training import loop
from harness.training.loop import Log, Progress, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOG = "training.json"
"""What training did (`Log`), beside the weights and, as a note, beside each artifact that is made of them."""

_MODEL, _VIEW = "model", "view"


def trained(
    model_dir: Path,
    rows: Sequence[Sequence[int]],
    recipe: Recipe,
    *,
    folder: Path,
    device: str,
    progress: Progress = loop.quiet,
    prepare: Callable[[PreTrainedModel], None] = lambda model: None,
    restore: Callable[[PreTrainedModel], None] = lambda model: None,
) -> Path:
    """The view of the trained weights in `folder`, made now or before; a call that was killed goes on. `prepare` changes layers
    before training (fake quantization), `restore` puts plain ones with the trained weights in their place. Unsupported for a
    model whose file stores its weights in other pieces than it trains."""
    made = view(folder)
    if source.known(made) is not None:
        return made
    import torch

    _check(model_dir)
    model = build.plain(model_dir, torch.float32, device)
    model.requires_grad_(True)
    prepare(model)
    teacher = build.plain(model_dir, torch.bfloat16, device) if recipe.loss == "kl" else None
    log = loop.train(model, rows, recipe, folder=folder, teacher=teacher, progress=progress)
    del teacher
    restore(model)
    with draft_folder(folder / _MODEL) as draft:
        _write(model, model_dir, draft)
    write_log(folder, log)
    source.make(folder / _MODEL, made)
    (folder / loop.CHECKPOINT).unlink(missing_ok=True)
    return made


def view(folder: Path) -> Path:
    """Where the view of the trained weights in `folder` lies, made or not."""
    return folder / _VIEW


def write_log(folder: Path, log: Log) -> None:
    write_atomically(folder / LOG, json.dumps(asdict(log), allow_nan=False))


def read_log(folder: Path) -> Log | None:
    """What training did, of the folder that holds its weights or an artifact; None where nothing says that it did anything."""
    try:
        return decode(Log, json.loads((folder / LOG).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def note_log(folder: Path, artifact: Path) -> None:
    """Keeps the log beside an artifact that is made of the weights in `folder`."""
    shutil.copyfile(folder / LOG, artifact / LOG)


def _check(model_dir: Path) -> None:
    """Unsupported where what is stored is not, tensor by tensor, what the loaded model holds."""
    hollow, _ = build.hollow(model_dir)
    held = hollow.state_dict()
    name_of = build.renamed(model_dir)
    stored = safetensors_file.checkpoint(model_dir)
    other = [name for name, e in stored.items() if name_of(name) not in held or tuple(held[name_of(name)].shape) != e.shape]
    if other:
        raise Unsupported(
            f"{brief(other)}: stored in other pieces than the model is loaded in (experts, say), so trained weights could not be "
            "written back under the source's names; train a model that stores its weights as transformers holds them"
        )


def _write(model: PreTrainedModel, model_dir: Path, folder: Path) -> None:
    """The model's weights under the source's names, with its other files, as a model's folder."""
    kept, name_of, held = source.kept(model_dir), build.renamed(model_dir), model.state_dict()
    names = safetensors_file.checkpoint(model_dir)
    state = {name: kept(name, held[name_of(name)].detach().cpu()).contiguous() for name in names}
    safetensors_file.save(state, folder / safetensors_file.MODEL)
    shutil.copyfile(model_dir / "config.json", folder / "config.json")
    build.carry(model_dir, folder)
