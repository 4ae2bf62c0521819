"""A GGUF file given as a model: recognised from its header, planned as a cell of its source, and run by llama.cpp."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import store
from harness.errors import BadInput
from harness.formats import gguf_reader, gguf_types
from harness.methods import METHODS, gguf, gguf_file, prequantized
from harness.methods.base import LoadRequest, QuantizeRequest, resolve_options, running_of
from harness.models import find
from harness.run import runner
from harness.spec import Quantized, Scheme
from harness.suite import matrix, plan
from tests.tiny_llama import llama, text, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
llama_cpp = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf")),
    reason="llama_cpp is not installed (it compiles for minutes): pip install -e '.[gguf]'",
)


def written(path: Path, *, kind: int = 12, named: int | None = 15, layers: int = 1, hidden: int = 8) -> Path:
    """A GGUF file with one matrix of a decoder layer, by hand. `kind`: ggml's type; `named`: general.file_type."""

    def string(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [string("general.architecture") + struct.pack("<I", 8) + string("llama")]
    entries += [string("llama.block_count") + struct.pack("<II", 4, layers)]
    entries += [string("llama.embedding_length") + struct.pack("<II", 4, hidden)]
    entries += [] if named is None else [string("general.file_type") + struct.pack("<II", 4, named)]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries)
    head += string("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 256, 2, kind, 0)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + b"\1" * 512)
    return path


def planned(tmp_path: Path, entries: str) -> plan.Plan:
    path = tmp_path / "given.yaml"
    path.write_text(f"name: given\nmodels: {entries}\nbaseline: fake 4-bit\nmethods: {{fake: {{bits: 4}}}}\nprobes: [size]\n")
    return matrix.plan(path, device="cpu")


@pytest.mark.parametrize(
    ("kind", "named", "expected", "bits"),
    [
        (12, 15, "Q4_K_M", 4),
        (12, 14, "Q4_K_S", 4),
        (10, 10, "Q2_K", 2),
        (34, 36, "TQ1_0", 1.58),
        (12, None, "Q4_K mixed", 4.5),
        (12, 7, "Q4_K mixed", 4.5),  # it says Q8_0 and holds no such block: quantized with types of somebody's own
        (12, 9999, "Q4_K mixed", 4.5),
    ],
)
def test_the_type_is_read_from_the_header_and_not_believed_where_the_file_holds_another(
    kind: int, named: int | None, expected: str, bits: float, tmp_path: Path
) -> None:
    shape = gguf_reader.shape_of(written(tmp_path / "m.gguf", kind=kind, named=named))
    scheme = gguf_file.scheme(shape.config)
    assert (prequantized.label("mine", scheme), scheme.bits) == (f"mine gguf {expected}", bits)


def test_every_file_type_of_the_method_is_known_by_its_number() -> None:
    assert set(gguf_types.FILE_TYPE_NAMES.values()) == set(gguf_types.FILE_TYPES)


def test_it_is_a_cell_of_the_model_that_it_was_made_of(tmp_path: Path, model_folder: Path) -> None:
    written(tmp_path / "mine.Q4_K_M.gguf")
    plan = planned(tmp_path, f"[{{path: {model_folder}, name: tiny}}, {{path: mine.Q4_K_M.gguf, of: tiny}}]")
    assert [(p.cell.model.name, p.cell.label, p.cell.method) for p in plan.cells] == [
        ("tiny", "fake 4-bit", "fake"),
        ("tiny", "mine.Q4_K_M.gguf gguf Q4_K_M", "gguf_file"),
    ]
    assert plan.cells[1].estimated_bytes == 2 * 144


def test_mistakes_are_named_before_anything_starts(tmp_path: Path, model_folder: Path) -> None:
    file = written(tmp_path / "m.gguf")
    tiny = f"{{path: {model_folder}, name: tiny}}"
    with pytest.raises(BadInput, match="name it here with `of`"):
        planned(tmp_path, f"[{tiny}, {{path: m.gguf}}]")
    with pytest.raises(BadInput, match="no such file"):
        planned(tmp_path, f"[{tiny}, {{path: gone.gguf, of: tiny}}]")
    file.write_bytes(b"GGUF and nothing else")
    with pytest.raises(BadInput, match="is no GGUF file"):
        planned(tmp_path, f"[{tiny}, {{path: m.gguf, of: tiny}}]")
    folder = tmp_path / "files"
    folder.mkdir()
    written(folder / "a.gguf")
    with pytest.raises(BadInput, match="give one of them as `path`"):
        planned(tmp_path, f"[{tiny}, {{path: files, of: tiny}}]")


def test_its_digest_is_that_of_its_bytes_and_not_of_its_name(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a.gguf"), written(tmp_path / "b.gguf")
    memo = tmp_path / "digests.json"
    assert find.weights_digest(one, memo) == find.weights_digest(two, memo)
    two.write_bytes(two.read_bytes()[:-1] + b"\2")
    assert find.weights_digest(one, memo) != find.weights_digest(two, memo)


@llama_cpp
def test_a_file_of_another_shape_than_its_source_is_refused(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / gguf.FILE).symlink_to(written(tmp_path / "m.gguf", layers=7))
    scheme = gguf_file.scheme(gguf_reader.shape_of(tmp_path / "m.gguf").config)
    with pytest.raises(BadInput, match="has 7 layers and the model it is given"):
        gguf_file.METHOD.load(
            LoadRequest(
                artifact_dir=tmp_path / "out",
                model_dir=model_folder,
                origin=Quantized(scheme=scheme),
                running=running_of(gguf_file.METHOD, {}, 4.0),
                device="cpu",
            )
        )


@llama_cpp
@pytest.mark.slow
def test_a_given_file_answers_as_the_cell_that_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    llama(dtype=torch.bfloat16).save_pretrained(source)
    tokenizer().save_pretrained(source)
    (tmp_path / "text.txt").write_text(text(60))
    method, out = METHODS["gguf"], tmp_path / "out"
    out.mkdir()
    scheme = Scheme(method="gguf", bits=4.0, options=resolve_options(method, {"type": "Q4_0"}, 4.0))
    request: Any = QuantizeRequest(
        model_dir=source, out_dir=out, origin=Quantized(scheme=scheme), calibration=[[5] * 64] * 2, device="cpu", seed=0
    )
    method.quantize(request)
    (out / gguf.FILE).rename(tmp_path / "mine.gguf")
    (tmp_path / "given.yaml").write_text(
        "name: given\nmodels: [{path: source, name: base}, {path: mine.gguf, name: mine, of: base}]\n"
        "methods: {bf16: , gguf: {bits: 4, type: Q4_0}}\ncorpora: [{path: text.txt, window: 64}]\ndevice: cpu\n"
        "memory: {prompt: 8, new: 4}\nprobes: [size, perplexity, divergence, memory]\n"
    )
    plan = matrix.plan(tmp_path / "given.yaml", device="cpu")
    run = store.read(runner.run(plan, runner.Settings(results=tmp_path / "results", cache=tmp_path / "cache")))
    found: dict[str, dict[str, float]] = {}
    for record in run.records:
        assert record.answer is not None, record.failure
        found.setdefault(record.cell.label, {}).update({m.metric: m.value for m in record.answer.measurements})
    made, given = found["gguf 4-bit Q4_0"], found["mine gguf Q4_0"]
    for metric in ("perplexity", "kl_mean", "bpw_quantized", "bpw_model", "file_bytes", "nominal_bits", "weight_bytes_resident"):
        assert given[metric] == made[metric], metric
    assert given["kl_mean"] > 0
    (link,) = (tmp_path / "cache" / "artifacts").glob("gguf_file-*/model.gguf")
    assert link.resolve() == tmp_path / "mine.gguf"
