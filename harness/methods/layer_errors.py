"""How far each quantized weight is from the source's, as a by-product of quantizing.

Where a method has all its weights unpacked for the reload check anyway, each is compared with the source's once more, one pair in
memory at a time. The relative error of a layer is ||W' - W||_F / ||W||_F, the Frobenius norm of the difference over that of the
source's weight. Where a method may scale columns and take that back in the layer before (`Method.folds`), the two cannot be
subtracted: there the ledger's own fit is kept (against_source.py), in which W' is compared with the source's weight scaled by row
and column so that it comes nearest, and the norm below the line is that of W'.

Quantizers that calibrate may say more: `output` is the mean over the calibration tokens of the squared change of the layer's
output, summed over its features, as GPTQ's objective has it (Frantar et al., 2022, equation 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.decode import decode
from harness.files import write_atomically
from harness.formats import safetensors_file
from harness.models import source

if TYPE_CHECKING:
    from harness.models.build import State

FILE = "layer_errors.json"
"""Beside an artifact, as a note of the harness: it is no part of what is measured or exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """One layer by its name: the Frobenius norms of what its weight changed by and of the weight itself. `output`: see above;
    None where the method does not say it."""

    layer: str
    changed: float
    norm: float
    output: float | None = None

    @property
    def relative(self) -> float:
        return self.changed / self.norm if self.norm else 0.0


def of(model_dir: Path, state: State) -> list[LayerError]:
    """The layers of the source's decoder that `state` holds unpacked, [outputs, inputs] or as the source stores them, in the
    source's order. None of a folder that is no view of a checkpoint, whose layers are not known."""
    view = source.known(model_dir)
    if view is None:
        return []
    body = {weight.name for weight in view.body}
    found = []
    for name, entry in safetensors_file.checkpoint(model_dir).items():
        layer = view.loaded(name.removesuffix(".weight"))
        theirs = state.get(name, state.get(f"{layer}.weight"))
        if layer not in body or theirs is None or theirs.dim() != 2:
            continue
        stored = safetensors_file.tensor(entry)
        ours = stored.float()
        held = theirs.to(device="cpu", copy=False).float()
        if ours.shape != held.shape and ours.t().shape == held.shape:
            held = held.t()
        if ours.shape == held.shape:
            norm = float(ours.norm())
            # In the place of its own copy: pages of a third tensor would cost as much as the arithmetic.
            changed = ours - held if ours is stored else ours.sub_(held)
            found.append(LayerError(layer=layer, changed=float(changed.norm()), norm=norm))
    return found


def total(errors: Iterable[LayerError]) -> float:
    """The relative error of all layers as one: the root of the sum of squared changes over that of the squared norms."""
    errors = list(errors)
    norm = math.fsum(e.norm**2 for e in errors)
    return math.sqrt(math.fsum(e.changed**2 for e in errors) / norm) if norm else 0.0


def write(folder: Path, errors: Iterable[LayerError]) -> None:
    """Keeps them beside an artifact, in place of what was there; nothing where there are none."""
    rows = [asdict(e) for e in errors]
    if rows:
        write_atomically(folder / FILE, json.dumps({"layers": rows}, allow_nan=False))
    else:
        (folder / FILE).unlink(missing_ok=True)


def read(folder: Path) -> tuple[LayerError, ...]:
    """What was kept; nothing where the method tells nothing, or the artifact was made before 2026-11-30."""
    try:
        rows = json.loads((folder / FILE).read_text(encoding="utf-8"))["layers"]
    except FileNotFoundError:
        return ()
    return tuple(decode(LayerError, row) for row in rows)


def add_outputs(folder: Path, outputs: Mapping[str, float]) -> None:
    """Adds what a quantizer said of the outputs of layers, by their names, to what was kept of them."""
    write(folder, [replace(e, output=outputs.get(e.layer)) for e in read(folder)])
