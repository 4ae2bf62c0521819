"""OpenVINO on a tiny Llama: quantized and reloaded in a child process, compared with counts by hand, with torch and lm-eval."""

from __future__ import annotations

import importlib.util
import json
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.engines import ENGINES, moments
from harness.engines.base import Loaded, Rerun
from harness.engines.transformers import Transformers
from harness.errors import BadInput, Unsupported
from harness.formats import openvino_ir
from harness.methods import METHODS
from harness.methods.base import LoadRequest, resolve_options, running_of
from harness.spec import Quantized, Scheme
from tests.methods.openvino_cells import CELLS, DAMAGED, LIBRARY, METHOD, VARIANTS, load, scheme
from tests.methods.test_offers import shape
from tests.scoring import tiny
from tests.tiny_llama import llama, tokenizer, windows

for package in ("openvino", "nncf"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[openvino]'", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::FutureWarning"),
]

HIDDEN, INTERMEDIATE, LAYERS, KV, VOCAB = 128, 256, 1, 64, 512
SHAPES = {"q": (HIDDEN, HIDDEN), "k": (KV, HIDDEN), "v": (KV, HIDDEN), "o": (HIDDEN, HIDDEN)}
SHAPES |= {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
WEIGHTS = LAYERS * sum(rows * columns for rows, columns in SHAPES.values())
NORMS = (2 * LAYERS + 1) * HIDDEN


def source() -> Any:
    model = llama(dtype=torch.bfloat16, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms of one are left out of a graph
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("openvino")
    source().save_pretrained(root / "source")
    tokenizer().save_pretrained(root / "source")
    command = [sys.executable, "-m", "tests.methods.openvino_cells", str(root)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (root / "outcomes.json").is_file(), f"the child ended with {done.returncode}: {done.stderr[-3000:]}"
    return root


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    logging.disable(logging.WARNING)  # lm-eval's
    yield
    logging.disable(logging.NOTSET)


def outcome(folder: Path, name: str) -> Any:
    found = json.loads((folder / "outcomes.json").read_text())[name]
    assert not (isinstance(found, dict) and "error" in found), found["error"]
    return found


def rounded() -> Any:
    """The source as the 16-bit IR has it: every weight rounded to float16."""
    model = llama(hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS)  # its frequencies in float32
    model.load_state_dict({name: tensor.half().float() for name, tensor in source().state_dict().items()})
    return model


@pytest.fixture(scope="module")
def exact(folder: Path) -> Any:
    """The 16-bit IR in float32 throughout."""
    return engine(folder, "16", execution="accuracy")


def engine(folder: Path, cell: str, **changes: Any) -> Any:
    return load(folder, cell, folder / "artifacts" / cell, **changes)


def joined(scores: Any, name: str) -> np.ndarray:
    return np.stack([getattr(score, name) for score in scores])


# ---------------------------------------------------------------------- artifacts


@pytest.mark.parametrize("cell", CELLS)
def test_a_scheme_is_quantized_and_answers_after_a_reload_as_its_constants_say(folder: Path, cell: str) -> None:
    assert outcome(folder, f"quantize {cell}") is None
    assert outcome(folder, cell)["check"] is None


@pytest.mark.parametrize("cell", DAMAGED)
def test_an_artifact_that_loads_as_another_model_is_found(folder: Path, cell: str) -> None:
    assert "does not answer as its weights say" in outcome(folder, f"damaged {cell}")


BITS_BY_HAND = {
    # codes, a float16 scale and, if asymmetric, a zero point of the codes' width per output channel or group
    "16": 16 * WEIGHTS,
    "8": 8 * WEIGHTS + LAYERS * sum(rows * (16 + 8) for rows, _ in SHAPES.values()),
    "4 sym": 4 * WEIGHTS + WEIGHTS // 64 * 16,
}


@pytest.mark.parametrize("cell", BITS_BY_HAND)
def test_the_ledger_equals_the_count_by_hand(folder: Path, cell: str) -> None:
    ledger = METHOD.ledger(folder / "artifacts" / cell, scheme(cell))
    assert sum(t.bits for t in ledger if t.role != "other") == BITS_BY_HAND[cell]
    assert METHOD.bits_per_weight(scheme(cell)) == pytest.approx(BITS_BY_HAND[cell] / WEIGHTS, abs=0.25)
    assert {t.layer for t in ledger if t.role == "weight"} == {
        f"model.layers.{n}.{'mlp' if name in ('gate', 'up', 'down') else 'self_attn'}.{name}_proj"
        for n in range(LAYERS)
        for name in SHAPES
    }


def test_a_mixture_is_counted_layer_by_layer(folder: Path) -> None:
    bits: dict[str, dict[str, int]] = {}
    for tensor in METHOD.ledger(folder / "artifacts" / "4 searched", scheme("4 searched")):
        if tensor.role != "other":
            bits.setdefault(tensor.layer, {})[tensor.role] = tensor.bits
    widths = set()
    for layer, parts in bits.items():
        rows, columns = SHAPES[layer.rpartition(".")[2].removesuffix("_proj")]
        width = parts["weight"] // (rows * columns)
        groups = rows * columns // 32 if width == 4 else rows
        assert parts == {"weight": rows * columns * width, "scale": 16 * groups, "zero": width * groups}
        widths.add(width)
    assert widths == {4, 8}


@pytest.mark.parametrize("cell", CELLS)
def test_the_ledger_covers_the_file_and_the_embeddings_are_in_8_bits(folder: Path, cell: str) -> None:
    artifact = folder / "artifacts" / cell
    ledger = METHOD.ledger(artifact, scheme(cell))
    bytes_stored = (artifact / openvino_ir.BIN).stat().st_size
    assert 0 <= bytes_stored - sum(t.bits for t in ledger) / 8 < 0.01 * bytes_stored  # padding to whole alignments
    (name,) = [t.name for t in ledger if t.bits == (16 if cell == "16" else 8) * VOCAB * HIDDEN]
    assert "embed_tokens" in name
    width = 16 if cell == "16" else 32  # what NNCF has compressed keeps its vectors in float32
    vectors = [t.bits for t in ledger if t.bits == width * HIDDEN and t.name.startswith("Constant")]
    assert sum(vectors) == width * NORMS


@pytest.mark.parametrize("cell", CELLS)
def test_every_layer_runs_on_a_kernel_that_takes_the_stored_type(folder: Path, cell: str) -> None:
    kernels = outcome(folder, cell)["kernels"]
    types = {"16": {"f16"}, "8": {"u8"}, "4 sym": {"i4"}, "4 searched": {"u4", "u8"}}
    assert len({layer for layer, *_ in kernels}) == LAYERS * len(SHAPES)
    assert {stored for *_, stored, _ in kernels} == types[cell]
    assert not any(dequantized for *_, dequantized in kernels)
    assert all(op and not op.startswith("undef") for _, _, op, _, _ in kernels)


@pytest.mark.parametrize("cell", LIBRARY)
def test_the_perplexity_is_that_of_the_librarys_own_path(folder: Path, cell: str) -> None:
    assert outcome(folder, cell)["perplexity"] == pytest.approx(outcome(folder, f"library {cell}"), rel=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_architectures_answer_as_transformers_does(folder: Path, name: str) -> None:
    found = outcome(folder, name)
    assert found["check"] is None
    assert found["difference"] < 1e-4 < 0.1 < found["spread"]


def test_a_record_says_what_it_ran_in(folder: Path) -> None:
    found = outcome(folder, "4 sym")
    assert found["settings"]["kv_cache_precision"] == "u8"
    assert "execution performance" in found["notes"][0]
    assert "KV cache in u8" in found["notes"][0]


def test_nothing_is_reported_home(folder: Path) -> None:
    assert outcome(folder, "telemetry") is False


def test_an_artifact_can_be_served_and_holds_no_path_of_this_machine(folder: Path) -> None:
    for cell in CELLS:
        names = {p.name for p in (folder / "artifacts" / cell).iterdir()}
        assert {"openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json"} <= names
        assert not {p.rpartition(".")[2] for p in names} - {"xml", "bin", "json", "jinja"}
        assert str(folder) not in (folder / "artifacts" / cell / openvino_ir.XML).read_text()


def test_a_damaged_file_is_bad_input(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder / "artifacts" / "16", tmp_path / "broken")
    (broken / openvino_ir.BIN).write_bytes(b"short")
    with pytest.raises(BadInput, match=r"lies outside of openvino_model\.bin"):
        openvino_ir.constants(broken)
    (broken / openvino_ir.XML).write_text("<net")
    with pytest.raises(BadInput, match="no readable OpenVINO model"):
        openvino_ir.constants(broken)
    with pytest.raises(BadInput, match="OpenVINO cannot read it"):
        METHOD.load(
            LoadRequest(
                artifact_dir=broken,
                model_dir=folder / "source",
                origin=Quantized(scheme=scheme("16")),
                running=running_of(METHOD, {}, 16.0),
                device="cpu",
            )
        )


# ---------------------------------------------------------------------- offers


def offered(bits: float, **options: Any) -> Scheme:
    return Scheme(method="openvino", bits=float(bits), options=resolve_options(METHOD, options, float(bits)))


@pytest.mark.parametrize(
    ("bits", "options", "changes", "device", "said"),
    [
        (4, {"type": "int8_sym"}, {}, "cpu", "belongs to 8 bits"),
        (8, {"group_size": 64}, {}, "cpu", "leave group_size out"),
        (8, {"gptq": True}, {}, "cpu", "gptq belongs to 4 bits"),
        (4, {"gptq": True, "lora_correction": True}, {}, "cpu", "not both"),
        (4, {}, {"columns": 576}, "cpu", "smaller group_size"),
        (4, {}, {"config": {"sliding_window": 4096}}, "cpu", "sliding window"),
        (4, {}, {"config": {"layer_types": ["full_attention", "linear_attention"]}}, "cpu", "no plain attention"),
        (4, {}, {"config": {"rope_scaling": {"rope_type": "dynamic"}}}, "cpu", "length of the input"),
        (4, {}, {}, "cuda", "CPU"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    bits: float, options: dict[str, Any], changes: dict[str, Any], device: str, said: str
) -> None:
    assert said in (METHODS["openvino"].supports(offered(bits, **options), shape(**changes), device) or "")


# ---------------------------------------------------------------------- the engine


def test_the_table_has_the_engine_and_it_keeps_the_protocol(exact: Any) -> None:
    assert ENGINES["openvino"].name == "openvino"
    protocol = {name for name in vars(Loaded) if not name.startswith("_")}
    assert all(hasattr(exact, name) for name in protocol)
    assert isinstance(exact, Rerun)


def test_windows_are_those_of_torch_and_a_torch_baseline_is_next_to_nothing_away(exact: Any, tmp_path: Path) -> None:
    rows = windows(4, 150)
    Transformers(rounded(), tokenizer()).store_baseline(rows, tmp_path / "baseline")
    found = list(exact.score_windows(rows, tmp_path / "baseline"))
    np.testing.assert_allclose(joined(found, "nll"), joined(found, "base_nll"), rtol=1e-4, atol=1e-4)
    assert 0 <= np.abs(joined(found, "kl")).max() < 1e-6
    assert joined(found, "same_top").dtype == bool
    assert joined(found, "same_top").mean() > 0.99
    mixed = [rows[0][:20], rows[1], rows[2][:2]]
    for score, row in zip(exact.score_windows(mixed, None), (0, 1, 2), strict=True):
        np.testing.assert_allclose(score.nll, found[row].nll[: len(score.nll)], rtol=1e-4, atol=1e-4)


def test_an_ir_against_itself_has_zero_divergence_and_its_floor_shows_the_8_bit_cache(
    folder: Path, exact: Any, tmp_path: Path
) -> None:
    rows = windows(3, 130)
    floors = {}
    for name, found in (("accuracy", exact), ("performance", engine(folder, "16"))):
        assert found.store_baseline(rows, tmp_path / name)["kind"] == "logits"
        assert (joined(found.score_windows(rows, tmp_path / name), "kl") == 0).all()
        said, again = found.rerun_windows(rows, tmp_path / name)
        floors[name] = np.abs(joined(again, "kl")).mean()
    assert "calls of 64 tokens" in said
    assert 0 <= floors["accuracy"] < 1e-6 < floors["performance"] < 1e-2


def test_other_tokens_another_vocabulary_and_long_windows_are_refused(exact: Any, tmp_path: Path) -> None:
    rows = windows(2, 20)
    Transformers(llama(), tokenizer()).store_baseline(rows, tmp_path / "a")
    Transformers(llama(vocab_size=640), tokenizer()).store_baseline(rows, tmp_path / "b")
    with pytest.raises(Unsupported, match="other tokens"):
        list(exact.score_windows(windows(2, 20, seed=1), tmp_path / "a"))
    with pytest.raises(Unsupported, match="640 logits"):
        list(exact.score_windows(rows, tmp_path / "b"))
    with pytest.raises(Unsupported, match="windows of 258 tokens do not fit the model's context of 256"):
        list(exact.score_windows(windows(1, 258), None))
    with pytest.raises(BadInput, match="at least 2"):
        list(exact.score_windows([[5]], None))


def test_log_likelihoods_are_those_of_lm_eval_and_headers_are_run_once(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=rounded(), tokenizer=tokenizer(), batch_size=4, max_length=256, logits_cache=False)
    lm = exact.lm()
    requests = tiny.instances("loglikelihood", tiny.questions(shots=4, each=6) + tiny.corner_cases())
    wanted = theirs.loglikelihood(requests, disable_tqdm=True)
    before = exact.model.tokens
    found = lm.loglikelihood(requests)
    np.testing.assert_allclose([a for a, _ in found], [a for a, _ in wanted], rtol=1e-3, atol=5e-3)
    assert [flag for _, flag in found] == [flag for _, flag in wanted]
    report = lm.report()
    assert report["tokens_run"] < report["tokens_of_plain_rows"] / 2
    assert report["tokens_run"] <= exact.model.tokens - before
    monkeypatch.setattr("harness.runtimes.openvino.LOGIT_BYTES", 4 * VOCAB * 17)
    again = lm.loglikelihood(requests)  # in calls of fewer tokens: a wide vocabulary
    np.testing.assert_allclose([a for a, _ in again], [a for a, _ in found], rtol=1e-4, atol=1e-3)
    rolling = tiny.instances("loglikelihood_rolling", [(tiny.sentence(random.Random(5), words),) for words in (3, 400)])
    wanted = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    np.testing.assert_allclose(lm.loglikelihood_rolling(rolling), wanted, rtol=1e-3)


def test_generations_are_those_of_lm_eval_and_sampling_is_refused(exact: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    kwargs = {"until": ["\n", " stone", "birds"], "max_gen_toks": 6}
    requests = tiny.instances("generate_until", [(c, kwargs) for c in ("the river", "a", "which city has more", "the house")])
    alone = HFLM(pretrained=rounded(), tokenizer=tokenizer(), batch_size=1, max_length=256)
    found = exact.lm().generate_until(requests)
    assert found == alone.generate_until(requests, disable_tqdm=True)
    assert len(set(found)) > 1
    sampled = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 4}
    with pytest.raises(Unsupported, match="greedily only"):
        exact.lm().generate_until(tiny.instances("generate_until", [("the river", sampled)]))


def test_timing_and_memory_ask_for_what_was_said(folder: Path, exact: Any) -> None:
    told: list[str] = []
    with moments.heard(told.append):
        timing = exact.time_generation(prompt_tokens=20, new_tokens=5, batch=3, seed=0)
    assert told == ["begin", "first token", "end"]
    assert timing.ttft_seconds > 0
    assert len(timing.step_seconds) == 4
    assert exact.model.past == 24
    asked: dict[str, Any] = {"prompt_tokens": 30, "new_tokens": 4, "batch": 2, "seed": 0}
    values = 2 * 2 * LAYERS * KV  # rows, keys and values
    for found, per_token in ((exact, 4 * values), (engine(folder, "16"), values + 8 * 2 * 2 * LAYERS * 2)):
        prefill, decode = (found.run_phase(phase, **asked) for phase in ("prefill", "decode"))
        assert (prefill["continued"], decode["continued"]) == (False, True)
        assert (prefill["kv_cache_bytes"], decode["kv_cache_bytes"]) == (30 * per_token, 33 * per_token)
        found.run_phase("prefill", **asked)
        list(found.score_windows(windows(1, 9), None))  # another use of the state
        assert found.run_phase("decode", **asked)["continued"] is False
    with pytest.raises(Unsupported, match="do not fit the model's context of 256"):
        exact.run_phase("prefill", prompt_tokens=250, new_tokens=10, batch=1, seed=0)
    with pytest.raises(ValueError, match="unknown phase"):
        exact.run_phase("load", prompt_tokens=1, new_tokens=1, batch=1, seed=0)


def test_facts_say_what_is_held(folder: Path, exact: Any) -> None:
    facts = exact.facts()
    assert (facts.engine, facts.device, facts.simulated) == ("openvino", "cpu", False)
    assert facts.details["active_weight_bytes"] == facts.resident_weight_bytes  # tied: the table is the head
    assert facts.resident_weight_bytes == outcome(folder, "16")["weight_bytes"]
    assert facts.details["kv_cache_precision"] == "f32"
    assert facts.details["dynamic_quantization_group_size"] == 0
