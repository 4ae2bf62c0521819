"""The bits-per-weight ledger: what is stored, counted from the stored tensors and never from a configuration.

Every bit of the artifact has a role (packed weights, scales, zero points, codebooks, indices, and everything kept as it was); the
parameters they stand for are those of the *source* model as it is loaded: tied ones once, buffers and tensors that are stored and
not loaded left out. Refuses (BadInput) a ledger that names a layer
which the source does not have: a ratio of two different things is no figure.

Versions
1  2026-11-21  first definition
2  2026-11-29  parameters are those of the loaded model; they were those of the file, with masks, copies and layers nothing loads
3  2026-11-29  quantized_share; layers are those of the loaded model, where a file stores them under other names or in parts
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import mixing, recipes
from harness.artifact import BodyWeight, ModelShape, StoredTensor
from harness.errors import BadInput
from harness.formats import gguf_reader
from harness.formats.quantization_config import quantization
from harness.formats.safetensors_file import brief
from harness.methods.base import Method
from harness.metrics.size import COMPRESSION, FILE, GROUP, MODEL, NOMINAL, QUANTIZED, SHARE
from harness.mixing import Mixture
from harness.models import body, build
from harness.models.find import shape_of, tensors
from harness.models.source import Source
from harness.models.source import known as read_source
from harness.probes.base import Probe, Session
from harness.probes.requests import ProbeRequests
from harness.recipes import Recipe
from harness.spec import Answer, Measurement, Metric, Question

CARRIERS = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".npz", ".npy", ".onnx", ".onnx_data", ".ggml")
TOLERANCE = 0.05
"""Share by which stored bits per weight may differ from the plan's estimate before the record is marked."""

_NOT_WEIGHTS = ("tokenizer", "training_args", "optimizer", "scheduler", "openvino_tokenizer", "openvino_detokenizer", "rng_state")


def questions(requests: ProbeRequests) -> list[Question]:
    return [Question(probe="size", subject="")]


def measure(session: Session, question: Question) -> Answer:
    from harness.methods import METHODS

    scheme = session.cell.scheme
    method = METHODS[scheme.method]
    counts = _Counts.read(session)
    source, view = counts.source, counts.view
    ledger = method.ledger(session.artifact_dir, scheme)
    if not ledger:
        raise BadInput(f"{session.cell.name}: the artifact holds no tensors; delete it from the cache and run again")
    quantized = _quantized(ledger, source)
    layer_bits: dict[str, int] = {}
    for tensor in quantized:
        layer_bits[_layer(tensor)] = layer_bits.get(_layer(tensor), 0) + tensor.bits
    layer_parameters = {layer: counts.of(layer) for layer in layer_bits}
    quantized_bits, quantized_parameters = sum(layer_bits.values()), sum(layer_parameters.values())
    bits = sum(tensor.bits for tensor in ledger)
    if bits > 65 * source.parameters:  # no format stores more than 64 bits for a number
        raise BadInput(
            f"{session.cell.name}: the artifact stores {bits / source.parameters:.0f} bits for each parameter of the source, "
            "so it was not made of this model; delete it from the cache and run again"
        )
    files = carriers(session.artifact_dir) or carriers(session.model_dir)
    file_bytes = sum(path.stat().st_size for path in files)

    def measurement(metric: Metric, value: float, n: int | None = None) -> Measurement:
        return Measurement(metric=metric.name, value=value, definition=metric.definition, unit=metric.unit, n=n)

    measured = [measurement(NOMINAL, float(scheme.bits))]
    if quantized_parameters:
        measured.append(measurement(QUANTIZED, quantized_bits / quantized_parameters, quantized_parameters))
    if counts.body and scheme.bits < 16:
        measured.append(measurement(SHARE, counts.share(ledger), body.parameters(counts.body)))
    measured += [
        measurement(MODEL, bits / source.parameters, source.parameters),
        measurement(FILE, float(file_bytes), len(files)),
        measurement(COMPRESSION, 16 * source.parameters / bits, source.parameters),
    ]
    facts = {
        "bits_by_role": _by_role(ledger),
        "tensors": len(ledger),
        "parameters": source.parameters,
        "parameters_quantized": quantized_parameters,
        "share_quantized": quantized_parameters / source.parameters,
        "bpw_by_layer": _spread(layer_bits, layer_parameters),
        "parts": _parts(ledger, counts),
        "files": sorted(path.name for path in files),
        "not_loaded": brief(view.unread) if view is not None and view.unread else None,
        "header_bytes": file_bytes - math.ceil(bits / 8),
    }
    by_layer = _by_layer(session, method, ledger, layer_bits, counts)
    notes = [*_notes(session, method, quantized_bits, quantized_parameters), *_said_of(by_layer.get("recipe"))]
    return Answer(measurements=tuple(measured), facts={**facts, "notes": notes, **by_layer})


def _by_layer(
    session: Session, method: Method, ledger: Sequence[StoredTensor], layer_bits: Mapping[str, int], counts: _Counts
) -> dict[str, object]:
    """What is known of widths that differ by layer, and the mark of an artifact that holds other bits than were planned."""
    scheme = session.cell.scheme
    facts: dict[str, object] = {}
    mixture = mixing.read(session.artifact_dir) if scheme.mixture is not None else None
    if mixture is not None:
        facts["mixture"] = _mixed(mixture, layer_bits, session.cell.name)
    recipe = recipes.of(scheme)
    if recipe is not None:
        facts["recipe"] = _by_recipe(session.artifact_dir, recipe, ledger, counts)
    indices = mixture is not None  # its target has them
    estimate = None if method.unquantized or recipe is not None else method.bits_per_weight(scheme)
    planned = None if estimate is None else _unlike_the_plan(estimate, ledger, counts, indices=indices)
    if planned is not None:
        facts["marks"] = [planned]
    return facts


def carriers(folder: Path) -> list[Path]:
    """Files under `folder` that carry tensors, links resolved, each once. Pickled twins of safetensors files do not count."""
    carried: dict[tuple[int, int], Path] = {}
    safe = any(folder.rglob("*.safetensors"))
    for path in sorted(folder.rglob("*")):
        name = path.name
        if path.suffix not in CARRIERS or name.startswith(_NOT_WEIGHTS) or not path.is_file():
            continue
        if safe and name.startswith("pytorch_model"):
            continue
        # An artifact links to the first part of a GGUF file that was given in parts; the others carry tensors too.
        for part in gguf_reader.parts(path) if path.suffix == ".gguf" and path.is_symlink() else [path]:
            info = part.stat()  # follows links: the same blob reached twice is one file
            carried.setdefault((info.st_dev, info.st_ino), part)
    return list(carried.values())


def _quantized(ledger: Sequence[StoredTensor], source: ModelShape) -> list[StoredTensor]:
    """Tensors of the quantized layers; where nothing is quantized, the weights of the decoder's linear layers."""
    quantized = [tensor for tensor in ledger if tensor.role != "other"]
    if quantized:
        return quantized
    linears = {f"{layer.name}.weight" for layer in source.linears}
    return [tensor for tensor in ledger if tensor.name in linears]


def _layer(tensor: StoredTensor) -> str:
    return tensor.layer or tensor.name.removesuffix(".weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """How many parameters a layer of the source has: by the loaded model's body, or by the names that the file stores (`stored`:
    parameters by tensor)."""

    source: ModelShape
    stored: Mapping[str, int]
    body: tuple[BodyWeight, ...]
    view: Source | None

    @classmethod
    def read(cls, session: Session) -> _Counts:
        """Those of the session's model: of its view, or of a quantized checkpoint what its architecture says, because packed
        tensors do not say how many parameters they stand for."""
        source, known = shape_of(session.model_dir), tensors(session.model_dir)
        weights: tuple[BodyWeight, ...] = ()
        if quantization(source.config) is not None:
            known = build.unpacked(session.model_dir)
            source = shape_of(session.model_dir, known)
            weights = body.of_model(build.hollow(session.model_dir)[0])
        view = read_source(session.model_dir) if session.model_dir.is_relative_to(session.cache) else None
        if view is not None:
            source, weights = replace(source, parameters=view.parameters), view.body
        stored = {name: math.prod(sizes) for name, (_, sizes) in known.items()}
        return cls(source=source, stored=stored, body=weights, view=view)

    def share(self, ledger: Sequence[StoredTensor]) -> float:
        """The share of the body that an artifact with this ledger holds quantized."""
        return body.share(ledger, self.body) if self.view is None else self.view.share(ledger)

    def loaded(self, layer: str) -> str:
        """The loaded model's name of a layer."""
        return layer if self.view is None else self.view.loaded(layer)

    def of(self, layer: str) -> int:
        """Parameters of the weight of one layer; BadInput if the source has no such layer."""
        known = {entry.name: entry.rows * entry.columns for entry in self.source.linears}
        parameters = (
            known.get(layer)
            or body.weights_of(self.loaded(layer), {weight.name: weight for weight in self.body})
            or self.stored.get(f"{layer}.weight")
            or self.stored.get(layer)
        )
        if not parameters:
            raise BadInput(f"the artifact's ledger names the layer {layer!r}, which the source model does not have")
        return parameters


def _spread(bits: Mapping[str, int], parameters: Mapping[str, int]) -> dict[str, float] | None:
    """Smallest, median and largest bits per weight of single layers: shows mixed precision."""
    each = sorted(total / parameters[layer] for layer, total in bits.items())
    return {"least": each[0], "median": each[len(each) // 2], "most": each[-1], "layers": len(each)} if each else None


def _body(ledger: Iterable[StoredTensor], counts: _Counts) -> dict[str, int]:
    """Stored bits of every layer of the body, packed or not, by its name."""
    layers = {layer.name for layer in counts.source.linears} | {weight.name for weight in counts.body}
    bits: dict[str, int] = {}
    for tensor in ledger:
        layer = _layer(tensor)
        if tensor.role != "other" or layer in layers or counts.loaded(layer) in layers:
            bits[layer] = bits.get(layer, 0) + tensor.bits
    return bits


def _parts(ledger: Iterable[StoredTensor], counts: _Counts) -> dict[str, dict[str, int]]:
    """Layers of the body, and their parameters, by the bits per weight that they take (to a tenth): what a mixture is made of."""
    parts: dict[str, dict[str, int]] = {}
    for layer, bits in sorted(_body(ledger, counts).items()):
        parameters = counts.of(layer)
        part = parts.setdefault(f"{bits / parameters:.1f}", {"layers": 0, "parameters": 0})
        part["layers"] += 1
        part["parameters"] += parameters
    return parts


def _mixed(mixture: Mixture, stored: Mapping[str, int], cell: str) -> dict[str, object]:
    """What is stored of a mixture: its target, what was planned by layer, and the width that each layer has in the file. BadInput
    where the file holds another number of bits of a layer than its width takes."""
    for each in mixture.layers:
        wanted = each.bits[mixture.chosen[each.layer]]
        if stored.get(each.layer) != wanted:
            raise BadInput(
                f"{cell}: layer {each.layer} was mixed to {mixture.chosen[each.layer]}, which takes {wanted:,} bits, and the "
                f"artifact holds {stored.get(each.layer, 0):,}; delete it from the cache and run again"
            )
    return {
        "target": mixture.target,
        "planned": mixture.bits_per_weight,
        "layers": dict(Counter(mixture.chosen.values())),
        "chosen": dict(mixture.chosen),
    }


def _by_recipe(folder: Path, recipe: Recipe, ledger: Iterable[StoredTensor], counts: _Counts) -> dict[str, object]:
    """What a recipe of one's own did, read from the artifact: the layers of the body that it left as they were, and its patterns
    that match no layer. What each layer takes is in `parts`."""
    body_layers = [weight.name for weight in counts.body] or [layer.name for layer in counts.source.linears]
    packed = {counts.loaded(_layer(tensor)) for tensor in ledger if tensor.role != "other"}
    left = [layer for layer in body_layers if layer not in packed]
    return {"digest": recipe.digest, "left": left, "unmatched": list(recipes.unmatched(folder))}


def _said_of(by_recipe: object) -> list[str]:
    if not isinstance(by_recipe, dict):
        return []
    left, missed = by_recipe["left"], by_recipe["unmatched"]
    assert isinstance(left, list)
    assert isinstance(missed, list)
    said = [f"its recipe left {len(left)} layers as they were: {brief(left)}"] if left else []
    return said + ([f"patterns of its recipe that match no layer: {brief(missed)}"] if missed else [])


def _unlike_the_plan(estimate: float, ledger: Iterable[StoredTensor], counts: _Counts, *, indices: bool = False) -> str | None:
    """What is said where the body takes other bits per weight than the plan's estimate, by more than TOLERANCE. Adapters, and
    without `indices` these, are left out: no estimate counts them, because their share depends on the numbers of rows and
    columns."""
    left = {"adapter"} if indices else {"adapter", "index"}
    stored_bits = _body([tensor for tensor in ledger if tensor.role not in left], counts)
    parameters = sum(map(counts.of, stored_bits))
    stored = sum(stored_bits.values()) / parameters if parameters else estimate
    if abs(stored / estimate - 1) <= TOLERANCE:
        return None
    return f"its linear layers take {stored:.2f} bits per weight, where {estimate:.2f} were planned"


def _by_role(ledger: Iterable[StoredTensor]) -> dict[str, int]:
    bits: dict[str, int] = {}
    for tensor in ledger:
        bits[tensor.role] = bits.get(tensor.role, 0) + tensor.bits
    return bits


def _notes(session: Session, method: Method, bits: int, parameters: int) -> list[str]:
    scheme = session.cell.scheme
    notes: list[str] = []
    if parameters and scheme.bits and not method.unquantized and bits / parameters > 1.5 * scheme.bits + 0.5:
        notes.append(
            f"stored at {bits / parameters:.2f} bits per weight, far above the {scheme.bits:g} that the scheme is named after: "
            "the values are as coarse as it says, the storage is not"
        )
    kernels = method.kernel_cuda if session.device.startswith("cuda") else method.kernel_cpu
    kinds = {kernels[scheme.bits]} if scheme.bits in kernels else set(kernels.values())
    if kinds == {"simulated"}:
        notes.append("simulated: this is what is stored; the engine holds the weights in 16 bits or wider once loaded")
    return notes


PROBE = Probe(
    name="size",
    title=GROUP.title,
    version="3",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    needs_model=False,
)
