"""The bits-per-weight ledger: what is stored, counted from the stored tensors and never from a configuration.

Every bit of the artifact has a role (packed weights, scales, zero points, codebooks, indices, and everything kept as it was); the
parameters they stand for are those of the *source* model as it is loaded: tied ones once, buffers and tensors that are stored and
not loaded left out. Refuses (BadInput) a ledger that names a layer
which the source does not have: a ratio of two different things is no figure.

Versions
1  2026-11-21  first definition
2  2026-11-29  parameters are those of the loaded model; they were those of the file, with masks, copies and layers nothing loads
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.artifact import ModelShape, StoredTensor
from harness.errors import BadInput
from harness.formats import gguf_reader
from harness.formats.quantization_config import quantization
from harness.formats.safetensors_file import brief
from harness.methods.base import Method
from harness.metrics.size import COMPRESSION, FILE, GROUP, MODEL, NOMINAL, QUANTIZED
from harness.models import build
from harness.models.find import shape_of, tensors
from harness.models.source import known as read_source
from harness.probes.base import Probe, Session
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Measurement, Metric, Question

CARRIERS = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".npz", ".npy", ".onnx", ".onnx_data", ".ggml")
_NOT_WEIGHTS = ("tokenizer", "training_args", "optimizer", "scheduler", "openvino_tokenizer", "openvino_detokenizer", "rng_state")


def questions(requests: ProbeRequests) -> list[Question]:
    return [Question(probe="size", subject="")]


def measure(session: Session, question: Question) -> Answer:
    from harness.methods import METHODS

    scheme = session.cell.scheme
    method = METHODS[scheme.method]
    source = shape_of(session.model_dir)
    known = tensors(session.model_dir)
    if quantization(source.config) is not None:  # packed tensors do not say how many parameters they stand for
        known = build.unpacked(session.model_dir)
        source = shape_of(session.model_dir, known)
    view = read_source(session.model_dir) if session.model_dir.is_relative_to(session.cache) else None
    if view is not None:
        source = replace(source, parameters=view.parameters)
    ledger = method.ledger(session.artifact_dir, scheme)
    if not ledger:
        raise BadInput(f"{session.cell.name}: the artifact holds no tensors; delete it from the cache and run again")
    counts = {name: math.prod(sizes) for name, (_, sizes) in known.items()}
    quantized = _quantized(ledger, source)
    quantized_bits = sum(tensor.bits for tensor in quantized)
    quantized_parameters = _parameters(quantized, source, counts)
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
        "bpw_by_layer": _spread(quantized, source, counts),
        "files": sorted(path.name for path in files),
        "not_loaded": brief(view.unread) if view is not None and view.unread else None,
        "header_bytes": file_bytes - math.ceil(bits / 8),
        "notes": _notes(session, method, quantized_bits, quantized_parameters),
    }
    return Answer(measurements=tuple(measured), facts=facts)


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


def _layer_parameters(layer: str, known: Mapping[str, int], counts: Mapping[str, int]) -> int:
    """Parameters of the weight of one layer of the source; BadInput if the source has no such layer."""
    parameters = known.get(layer) or counts.get(f"{layer}.weight") or counts.get(layer)
    if not parameters:
        raise BadInput(f"the artifact's ledger names the layer {layer!r}, which the source model does not have")
    return parameters


def _known(source: ModelShape) -> dict[str, int]:
    return {layer.name: layer.rows * layer.columns for layer in source.linears}


def _parameters(quantized: Iterable[StoredTensor], source: ModelShape, counts: Mapping[str, int]) -> int:
    known = _known(source)
    return sum(_layer_parameters(layer, known, counts) for layer in sorted({_layer(tensor) for tensor in quantized}))


def _spread(quantized: Sequence[StoredTensor], source: ModelShape, counts: Mapping[str, int]) -> dict[str, float] | None:
    """Smallest, median and largest bits per weight of single layers: shows mixed precision."""
    known = _known(source)
    bits: dict[str, int] = {}
    for tensor in quantized:
        bits[_layer(tensor)] = bits.get(_layer(tensor), 0) + tensor.bits
    each = sorted(total / _layer_parameters(layer, known, counts) for layer, total in bits.items())
    return {"least": each[0], "median": each[len(each) // 2], "most": each[-1], "layers": len(each)} if each else None


def _by_role(ledger: Iterable[StoredTensor]) -> dict[str, int]:
    bits: dict[str, int] = {}
    for tensor in ledger:
        bits[tensor.role] = bits.get(tensor.role, 0) + tensor.bits
    return bits


def _notes(session: Session, method: Method, bits: int, parameters: int) -> list[str]:
    scheme = session.cell.scheme
    notes: list[str] = []
    if parameters and not method.unquantized and bits / parameters > 1.5 * scheme.bits + 0.5:
        notes.append(
            f"stored at {bits / parameters:.2f} bits per weight, far above the {scheme.bits:g} that the scheme is named after: "
            "the values are as coarse as it says, the storage is not"
        )
    kernels = method.kernel_cuda if session.device.startswith("cuda") else method.kernel_cpu
    if kernels.get(scheme.bits) == "simulated":
        notes.append("simulated: this is what is stored; the engine holds the weights in 16 bits or wider once loaded")
    return notes


PROBE = Probe(
    name="size",
    title=GROUP.title,
    version="2",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    needs_model=False,
)
