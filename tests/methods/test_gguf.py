"""Every GGUF file type on a tiny Llama: quantize, reload in a fresh process, and compare with counts made by hand."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import Unsupported
from harness.formats import gguf_export, gguf_names, gguf_reader, gguf_vocabulary, gguf_weights
from harness.methods import gguf
from harness.models import build
from tests.methods.cells import ROWS
from tests.methods.gguf_cells import CELLS, METHOD, request, scheme
from tests.tiny_llama import llama, tokenizer

for package in ("llama_cpp", "gguf"):
    pytest.importorskip(package, reason=f"{package} is not installed (it compiles for minutes): pip install -e '.[gguf]'")
llama_runtime: Any = importlib.import_module("harness.runtimes.llama_cpp")

# Importing a model class imports hqq where it is installed, and that a part of torch that uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

HIDDEN, INTERMEDIATE, LAYERS, KV, VOCAB = 256, 512, 2, 128, 512
SHAPES = {"q": HIDDEN * HIDDEN, "k": KV * HIDDEN, "v": KV * HIDDEN, "o": HIDDEN * HIDDEN}
SHAPES |= {"gate": INTERMEDIATE * HIDDEN, "up": INTERMEDIATE * HIDDEN, "down": HIDDEN * INTERMEDIATE}
QUANTIZED = [cell for cell in CELLS if CELLS[cell]["type"] not in gguf.UNQUANTIZED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source, artifacts of all types, and what each of the two children saw."""
    root = tmp_path_factory.mktemp("gguf")
    llama(dtype=torch.bfloat16, intermediate_size=INTERMEDIATE).save_pretrained(root / "source")
    tokenizer().save_pretrained(root / "source")
    for stage in ("quantize", "reload"):
        command = [sys.executable, "-m", "tests.methods.gguf_cells", stage, str(root)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        assert (root / f"{stage}.json").is_file(), f"{stage} ended with {done.returncode}: {done.stderr[-3000:]}"
    return root


def outcome(folder: Path, stage: str, cell: str) -> Any:
    return json.loads((folder / f"{stage}.json").read_text())[cell]


def stored(folder: Path, cell: str) -> dict[str, gguf_reader.GgufTensor]:
    return {t.name: t for t in gguf_reader.header(folder / "artifacts" / cell / gguf.FILE).tensors}


@pytest.mark.parametrize("cell", CELLS)
def test_a_type_is_quantized_and_answers_after_a_reload_as_its_weights_say(folder: Path, cell: str) -> None:
    assert outcome(folder, "quantize", cell) == "ok"
    found = outcome(folder, "reload", cell)
    assert "error" not in found, found["error"]
    assert found["check"] is None


BLOCKS_BY_HAND = {
    "F32": 32, "BF16": 16, "F16": 16, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K_S": 5.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_1": 5,
    "Q4_0": 4.5, "IQ4_NL": 4.5, "IQ4_XS": 4.25, "Q3_K_S": 3.4375, "IQ3_S": 3.4375, "TQ2_0": 2.0625, "TQ1_0": 1.6875,
    "Q2_K_S": 2.625, "Q2_0": 2.25, "Q1_0": 1.125, "MXFP4": 4.25, "NVFP4": 4.5,
}  # fmt: skip
"""Bits per weight of the types that two layers store throughout, from the formats' descriptions."""


@pytest.mark.parametrize("cell", BLOCKS_BY_HAND)
def test_the_ledger_equals_the_count_by_hand(folder: Path, cell: str) -> None:
    ledger = METHOD.ledger(folder / "artifacts" / cell, scheme(cell))
    counted = sum(t.bits for t in ledger if t.role != "other")
    assert counted == LAYERS * sum(SHAPES.values()) * BLOCKS_BY_HAND[cell]
    assert METHOD.bits_per_weight(scheme(cell)) == pytest.approx(BLOCKS_BY_HAND[cell], abs=0.17)


def test_a_mixture_has_the_types_that_llama_cpp_documents(folder: Path) -> None:
    """Q4_K_M of two layers: the second of them counts as one of the last eighth, which gets 6 bits in v and down."""
    types = {name: tensor.type for name, tensor in stored(folder, "Q4_K_M").items() if name.endswith("weight")}
    assert types["blk.0.attn_v.weight"] == types["blk.0.ffn_down.weight"] == types["blk.1.attn_q.weight"] == "Q4_K"
    assert types["blk.1.attn_v.weight"] == types["blk.1.ffn_down.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q6_K"
    assert types["output_norm.weight"] == "F32"
    more = SHAPES["v"] + SHAPES["down"]
    ledger = METHOD.ledger(folder / "artifacts" / "Q4_K_M", scheme("Q4_K_M"))
    assert sum(t.bits for t in ledger if t.role != "other") == 4.5 * (LAYERS * sum(SHAPES.values()) - more) + 6.5625 * more


@pytest.mark.parametrize("cell", CELLS)
def test_the_estimate_of_a_mixture_is_near_what_is_stored(folder: Path, cell: str) -> None:
    ledger = METHOD.ledger(folder / "artifacts" / cell, scheme(cell))
    weights = LAYERS * sum(SHAPES.values())
    assert sum(t.bits for t in ledger if t.role != "other") / weights == pytest.approx(
        METHOD.bits_per_weight(scheme(cell)), abs=0.3
    )


@pytest.mark.parametrize("cell", CELLS)
def test_the_ledger_covers_every_byte_of_the_tensors_and_the_engine_holds_them(folder: Path, cell: str) -> None:
    path = folder / "artifacts" / cell / gguf.FILE
    ledger = METHOD.ledger(path.parent, scheme(cell))
    last = max(gguf_reader.header(path).tensors, key=lambda t: t.offset)
    assert 0 <= path.stat().st_size - last.offset - last.bytes < 32
    assert sum(t.bits for t in ledger) == 8 * outcome(folder, "reload", cell)["weight_bytes"]


@pytest.mark.parametrize("cell", CELLS)
def test_every_linear_layer_shows_its_kernel_with_the_type_that_is_stored(folder: Path, cell: str) -> None:
    kernels = outcome(folder, "reload", cell)["kernels"]
    ledger = METHOD.ledger(folder / "artifacts" / cell, scheme(cell))
    assert {layer for layer, *_ in kernels} == {t.layer for t in ledger if t.role == "weight"}
    assert len(kernels) == LAYERS * len(SHAPES)
    assert "model.layers.1.mlp.down_proj" in {layer for layer, *_ in kernels}
    assert not any(dequantized for *_, dequantized in kernels)
    if cell in BLOCKS_BY_HAND and cell not in ("Q5_K_S", "Q3_K_S", "Q2_K_S"):
        assert {kind for *_, kind, _ in kernels} == {cell}


def test_fewer_bits_disturb_the_answers_more(folder: Path) -> None:
    ladder = [outcome(folder, "reload", cell)["divergence"] for cell in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")]
    assert ladder == sorted(ladder)
    assert 0 < 20 * ladder[0] < ladder[-1]


def test_an_importance_matrix_changes_what_is_stored(folder: Path) -> None:
    with_it, without = (stored(folder, cell) for cell in ("Q3_K_S matrix", "Q3_K_S"))
    assert {n: t.type for n, t in with_it.items()} == {n: t.type for n, t in without.items()}
    files = [(folder / "artifacts" / cell / gguf.FILE).read_bytes() for cell in ("Q3_K_S matrix", "Q3_K_S")]
    changed = [n for n, t in with_it.items() if files[0][t.offset :][: t.bytes] != files[1][without[n].offset :][: t.bytes]]
    assert {name.split(".")[2] for name in changed if name.startswith("blk")} == {
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    }  # fmt: skip
    assert json.loads((folder / "artifacts" / "Q3_K_S matrix" / gguf.FACTS).read_text())["importance_entries"] == 7 * LAYERS


def test_the_matrix_is_the_mean_square_of_what_enters_a_layer(folder: Path) -> None:
    """Against the inputs of one layer written out from the model's own modules."""
    found = gguf.importance(request(folder, "Q2_K matrix", folder))
    assert len(found) == 7 * LAYERS
    model = build.plain(folder / "source", torch.float32, "cpu")
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor(ROWS), output_hidden_states=True).hidden_states[1]
        entering = model.model.layers[1].input_layernorm(hidden).double()
    wanted = entering.square().mean(dim=(0, 1)).numpy()
    np.testing.assert_allclose(found["blk.1.attn_q.weight"], wanted, rtol=1e-4)
    np.testing.assert_array_equal(found["blk.1.attn_q.weight"], found["blk.1.attn_v.weight"])
    assert found["blk.1.ffn_down.weight"].shape == (INTERMEDIATE,)


def test_a_matrix_lowers_the_weighted_error_that_it_weighs(folder: Path) -> None:
    """Sum over columns of importance x squared error of the stored weights: lower with the matrix than without."""
    matrix = gguf.importance(request(folder, "Q3_K_S matrix", folder))
    config = gguf_export.decoder_of(folder / "source")
    exact = gguf_weights.unpacked(folder / "artifacts" / "F32" / gguf.FILE, config)
    errors = {}
    for cell in ("Q3_K_S matrix", "Q3_K_S"):
        state = gguf_weights.unpacked(folder / "artifacts" / cell / gguf.FILE, config)
        errors[cell] = sum(
            float(((state[n] - exact[n]).double().square() * torch.from_numpy(matrix[str(gguf_names.gguf_name(n))])).sum())
            for n in exact
            if "proj" in n
        )
    assert errors["Q3_K_S matrix"] < 0.97 * errors["Q3_K_S"]


def test_unpacked_weights_are_the_sources_where_nothing_is_quantized(folder: Path) -> None:
    config = gguf_export.decoder_of(folder / "source")
    state = gguf_weights.unpacked(folder / "artifacts" / "BF16" / gguf.FILE, config)
    source = llama(dtype=torch.bfloat16, intermediate_size=INTERMEDIATE).state_dict()
    assert set(state) == set(source) - {"lm_head.weight"}
    assert all(torch.equal(tensor, source[name].float()) for name, tensor in state.items())


@pytest.mark.parametrize("cell", ["BF16", "Q4_K_M", "IQ2_S"])
def test_an_artifact_that_loads_as_another_model_is_found(folder: Path, cell: str) -> None:
    reason = outcome(folder, "reload", f"damaged {cell}")
    assert reason is not None
    assert "does not answer as its weights say" in reason


def test_an_artifact_holds_no_source_file_and_no_path_of_this_machine(folder: Path) -> None:
    for cell in CELLS:
        artifact = folder / "artifacts" / cell
        assert {p.name for p in artifact.iterdir()} == {"model.gguf", "gguf.json", "reload_check.json"}
        said = str(gguf_reader.header(artifact / gguf.FILE).metadata)
        assert str(folder) not in said


def test_the_tokenizer_in_the_file_gives_the_ids_of_the_source(folder: Path) -> None:
    path = folder / "artifacts" / "Q4_K_M" / gguf.FILE
    assert json.loads((path.parent / gguf.FACTS).read_text())["tokenizer"] == "embedded"
    words = tokenizer()
    for text in ("the river runs", "Größe, naïve – 你好 🙂\n\ttab  12 it's", gguf_vocabulary.SAMPLE):
        assert llama_runtime.same_ids(path, text, words(text, add_special_tokens=False)["input_ids"])
    assert not llama_runtime.same_ids(path, "the river", words("the stone", add_special_tokens=False)["input_ids"])


def test_a_tokenizer_with_another_rule_is_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    """llama.cpp asked for GPT-2's rule gives other ids than a tokenizer that cuts single digits apart."""
    import tokenizers

    words = tokenizer()
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    plain = words.backend_tokenizer.pre_tokenizer
    words.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([plain, digits])
    assert "only byte-level BPE" in str(gguf_vocabulary.read(words, VOCAB))
    written = gguf_export.convert(folder / "source", tmp_path / "m.gguf", dtype="BF16", same_ids=lambda path, ids: False)
    assert "not embedded" in written.tokenizer
    weights = llama_runtime.Weights(tmp_path / "m.gguf")
    assert weights.vocab_size == VOCAB
    assert weights.log_probabilities(ROWS[:1]).shape == (len(ROWS[0]) - 1, VOCAB)
    weights.close()


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    model = llama(dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "source")
    tokenizer().save_pretrained(tmp_path / "source")
    with pytest.raises(Unsupported, match="beyond the range of F16; choose type BF16"):
        gguf_export.convert(tmp_path / "source", tmp_path / "m.gguf", dtype="F16", same_ids=lambda path, ids: True)


def test_what_llama_cpp_refuses_is_said_in_its_words(folder: Path, tmp_path: Path) -> None:
    source = folder / "artifacts" / "BF16" / gguf.FILE
    with pytest.raises(RuntimeError, match=r"cannot quantize to IQ2_XXS: .*requires an i"):
        llama_runtime.quantize(source, tmp_path / "m.gguf", file_type="IQ2_XXS", importance={})
