"""The engines: what loads an artifact and answers. One row per engine; nothing is imported before a row's `load` is called."""

from __future__ import annotations

import os

from harness.engines.base import Engine, Loaded
from harness.methods.base import LoadRequest, Method


def _transformers(method: Method, request: LoadRequest) -> Loaded:
    from harness.engines import transformers

    return transformers.load(method, request)


def _llamacpp(method: Method, request: LoadRequest) -> Loaded:
    from harness.engines import llamacpp

    return llamacpp.load(method, request)


def _endpoint(method: Method, request: LoadRequest) -> Loaded:
    from harness.engines import endpoint

    return endpoint.load(method, request)


def _openvino(method: Method, request: LoadRequest) -> Loaded:
    from harness.engines import openvino

    return openvino.load(method, request)


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

    def _scripted(method: Method, request: LoadRequest) -> Loaded:
        from harness.engines import fake

        return fake.load(method, request)

    ENGINES["fake"] = Engine(name="fake", title="Scripted", modules=(), load=_scripted)
