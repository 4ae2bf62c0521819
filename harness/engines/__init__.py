"""The engines: what loads an artifact and answers. One row per engine; nothing is imported before a row's `load` is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.engines.base import Engine, Loaded
from harness.spec import Cell


def _transformers(cell: Cell, artifact_dir: Path, model_dir: Path, device: str) -> Loaded:
    from harness.engines import transformers

    return transformers.load(cell, artifact_dir, model_dir, device)


def _llamacpp(cell: Cell, artifact_dir: Path, model_dir: Path, device: str) -> Loaded:
    from harness.engines import llamacpp

    return llamacpp.load(cell, artifact_dir, model_dir, device)


def _endpoint(cell: Cell, artifact_dir: Path, model_dir: Path, device: str) -> Loaded:
    from harness.engines import endpoint

    return endpoint.load(cell, artifact_dir, model_dir, device)


def _openvino(cell: Cell, artifact_dir: Path, model_dir: Path, device: str) -> Loaded:
    from harness.engines import openvino

    return openvino.load(cell, artifact_dir, model_dir, device)


ENGINES: dict[str, Engine] = {
    "transformers": Engine(
        name="transformers",
        title="Transformers (PyTorch)",
        modules=("torch", "transformers"),
        load=_transformers,
    ),
    "llamacpp": Engine(
        name="llamacpp",
        title="llama.cpp",
        modules=("torch", "transformers", "llama_cpp"),
        load=_llamacpp,
    ),
    "endpoint": Engine(
        name="endpoint",
        title="OpenAI-compatible server",
        modules=("torch", "transformers"),
        load=_endpoint,
    ),
    "openvino": Engine(
        name="openvino",
        title="OpenVINO (CPU)",
        # Ours comes first: it takes OpenVINO's and NNCF's reports home away before either is imported.
        modules=("torch", "transformers", "harness.runtimes.openvino"),
        load=_openvino,
    ),
}

if os.environ.get("QUANT_HARNESS_FAKES"):  # the tests' scripted methods; see methods/fake.py

    def _scripted(cell: Cell, artifact_dir: Path, model_dir: Path, device: str) -> Any:
        from harness.engines import fake

        return fake.Scripted(artifact_dir)

    ENGINES["fake"] = Engine(name="fake", title="Scripted", modules=(), load=_scripted)
