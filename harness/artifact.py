"""What an artifact is made of: the layers of the source model, the tensors that are stored, the kernels that run.

Standard library only: workers import this inside foreign environments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.spec import Json, Phase, Running, digest

Role = Literal["weight", "scale", "zero", "codebook", "index", "adapter", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """One linear layer of the source model: its name, and its weight's shape (out_features, in_features)."""

    name: str
    rows: int
    columns: int


WeightKind = Literal["linear", "derived", "conv1d", "experts", "other"]
"""What holds a weight: `linear` = nn.Linear; `derived` = a class derived from it (Falcon); `conv1d` = transformers' Conv1D
(GPT-2), stored the other way round; `experts` = the matrices of all experts of a mixture in one parameter; `other` = a matrix of
a module of the model's own, such as a router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyWeight:
    """One weight that the loaded model's decoder multiplies with: `matrices` of them of [rows, columns] (for experts as they are
    held, whichever of the two the outputs are). `name` is the module's, or for experts the parameter's."""

    name: str
    kind: WeightKind
    rows: int
    columns: int
    matrices: int = 1

    @property
    def parameters(self) -> int:
        return self.matrices * self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What can be known of a model without torch: from config.json and the safetensors headers.

    `linears` are the linear layers of the decoder blocks (what methods quantize); `parameters` counts every stored
    parameter once (tied ones once). `architecture` is e.g. "LlamaForCausalLM", `config` the config.json. `body`: what holds the
    weights in the loaded model, where that is more than linear layers (models/body.py); None: `linears` say it.
    """

    architecture: str
    parameters: int
    linears: tuple[LinearLayer, ...]
    hidden: int
    layers: int
    vocab: int
    tied: bool
    dtype: str
    config: Mapping[str, object] = field(default_factory=dict)
    body: tuple[BodyWeight, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKernel:
    """Kernel proof of one quantized layer after load: module class, the op or backend that computes, dtype of the stored
    weight, and whether the weights are held dequantized (16 bits or wider)."""

    layer: str
    module: str
    op: str
    stored_dtype: str
    dequantized: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor as stored in the artifact: `bits` = all bits on disk, `role` = which part of the ledger it belongs to.

    `weight` (packed quantized weights), `scale`, `zero`, `codebook`, `index` (e.g. g_idx), `adapter` (a low-rank pair beside
    a layer) belong to the quantized layers;
    `other` is everything that is kept as it was (embeddings, norms, head, biases). `layer` is the quantized layer's name or ''.
    """

    name: str
    layer: str
    role: Role
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWeight:
    """One tensor of an artifact as a weight of the source model, by the source's name. `shape` is that of the weight that it
    stands for (outputs, inputs); None where what is stored does not tell. `read` gives a torch tensor of that shape: the values
    of one that is kept as it was; of a `quantized` one those that its codes stand for, or None where the row does not read them.
    `file` holds it, where it is a tensor of a file by itself."""

    name: str
    shape: tuple[int, ...] | None
    quantized: bool
    read: Callable[[], Any] | None = None
    file: Path | None = None


MANIFEST = "artifact.json"
"""Written last into an artifact's folder: a folder without it is no artifact."""


def verified(artifact: Path, running: Running) -> Path:
    """The file that is written into an artifact once a fresh process has reloaded it, to be run in this way, and seen that it
    answers as its weights say. Another way of running may load it otherwise, so it is checked by itself."""
    return artifact / f"verified-{digest(running)[:12]}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """How an artifact was made: `scheme` is `Scheme.identity()`, `phase` what quantizing took. `calibration_digest` is that of
    the text whose rows it saw (`corpora.digest`); None without one, and in artifacts made before 2026-11-29."""

    scheme: Mapping[str, Json]
    method_version: str
    phase: Phase
    calibration_tokens: int | None
    device: str
    calibration_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of an artifact: its name in the folder, with `/` between folders, and the SHA-256 of its bytes."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """The bytes of an artifact that was measured; records name it by `digest`. `folder` is its name in the cache; `files` are all
    that a runtime reads, sorted by name, and not what the harness notes beside them."""

    digest: str
    folder: str
    files: tuple[StoredFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """Under which licence a model is given, as its own card says: the hub's identifier ("apache-2.0", "other"), and for one that
    the hub does not know its name and where it is written."""

    identifier: str
    name: str = ""
    link: str = ""
