"""What is said of serving an artifact can be typed: commands are quoted, Python parses, every method has its words."""

from __future__ import annotations

import ast
import shlex

import pytest

from harness.artifact import ArtifactRecord, StoredFile
from harness.methods import METHODS
from harness.methods.base import resolve_options
from harness.run import serving
from harness.spec import Cell, Given, Model, Quantized, Running, Scheme


def artifact(name: str) -> ArtifactRecord:
    return ArtifactRecord(digest="d", folder="f", files=(StoredFile(name=name, bytes=1, sha256="0" * 64),))


def cell(method: str, bits: float, *, kv: str = "", **options: object) -> Cell:
    row = METHODS[method]
    scheme = Scheme(method=method, bits=bits, options={**resolve_options(row, {}, bits), **options})
    return Cell(model=Model(name="m"), origin=Quantized(scheme=scheme), running=Running(engine=row.engine, kv=kv))


MADE = [
    (method.name, bits)
    for method in METHODS.values()
    if method.origin == "quantized" and not method.name.startswith("fake")
    for bits in method.bits
]


@pytest.mark.parametrize(("method", "bits"), MADE)
def test_every_method_has_a_way_of_being_loaded_and_each_can_be_typed(method: str, bits: float) -> None:
    ways = serving.ways(
        cell(method, bits), artifact("model.gguf" if METHODS[method].engine == "llamacpp" else "model.safetensors")
    )
    assert ways
    assert any("quant-harness measured it with this runtime" in way.note for way in ways)
    for way in ways:
        if way.language == "python":
            ast.parse(way.code)
        else:
            assert shlex.split(way.code)
            served = "llama_cpp.server" in way.code  # test_gguf_server.py
            others = ("Not run by quant-harness.", "this command it does not run.")
            assert way.note.endswith("Tests of quant-harness serve an export with it." if served else others)


def test_vllm_is_named_where_it_has_kernels() -> None:
    def servers(method: str, bits: float) -> list[str]:
        return [way.code for way in serving.ways(cell(method, bits), artifact("model.safetensors")) if way.runtime == "vLLM"]

    assert servers("gptq", 4) == servers("awq", 4) == servers("bf16", 16) == ["vllm serve ."]
    assert servers("awq", 3) == servers("hqq", 4) == []
    assert servers("modelopt", 8) == ["vllm serve . --quantization modelopt"]


def test_the_hub_is_told_a_library_only_where_that_reads_the_folder() -> None:
    named = {method: serving.library(cell(method, METHODS[method].bits[0])) for method, _ in MADE}
    assert {named[method] for method in ("bf16", "gptq", "awq", "bnb", "llmcompressor")} == {"transformers"}
    assert {named[method] for method in ("hqq", "torchao", "quanto", "inc", "modelopt")} == {""}
    assert (named["gguf"], named["openvino"]) == ("gguf", "openvino")


def test_a_gguf_file_with_any_name_and_its_cache_are_arguments_of_its_server() -> None:
    origin = Given(
        scheme=Scheme(method="gguf_file", bits=4.0, options={"format": "gguf", "type": "Q4_0"}), checkpoint=Model(name="m")
    )
    named = "a'; rm -rf $HOME `x`.gguf"
    given = Cell(model=Model(name="m"), origin=origin, running=Running(engine="llamacpp", kv="q8_0"))
    server, bound, python = serving.ways(given, artifact(named))
    words = shlex.split(server.code)
    assert words[:3] == ["llama-server", "--model", named]
    assert words[3:9] == ["--cache-type-k", "q8_0", "--cache-type-v", "q8_0", "--flash-attn", "on"]
    words = shlex.split(bound.code)
    assert words[:5] == ["python", "-m", "llama_cpp.server", "--model", named]
    assert words[5:11] == ["--type_k", "8", "--type_v", "8", "--flash_attn", "true"], "ggml's number of q8_0"
    call = ast.parse(python.code).body[-1]
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    assert ast.literal_eval(call.value.args[0]) == named


def test_options_that_a_suite_wrote_are_values_and_no_code() -> None:
    (way,) = serving.ways(cell("hqq", 4, note="'); import os; os.system('x'); ('"), artifact("model.safetensors"))
    tree = ast.parse(way.code)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"pathlib", "harness.methods", "harness.methods.base", "harness.spec"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


def test_what_nobody_knows_is_served_by_nobody() -> None:
    unknown = Cell(
        model=Model(name="m"), origin=Quantized(scheme=Scheme(method="of-another-package", bits=4.0)), running=Running(engine="x")
    )
    assert serving.ways(unknown, artifact("model.bin")) == ()
    assert serving.library(unknown) == ""
