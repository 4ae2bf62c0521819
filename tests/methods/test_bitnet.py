"""BitNet's packing and rounding, models that are published packed, and the sibling of the reference model that was trained so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import reference
from harness.errors import BadInput
from harness.formats import bitnet_file, safetensors_file
from harness.methods import METHODS, bitnet, prequantized, reload
from harness.methods.base import QuantizeRequest
from harness.models import find, unpacked
from harness.spec import Model, Scheme
from harness.suite import matrix

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def trits(rows: int = 16, columns: int = 24) -> torch.Tensor:
    return torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(0)).to(torch.int8)


def test_four_rows_share_a_byte_as_transformers_packs_them() -> None:
    from transformers.integrations.bitnet import pack_weights

    assert torch.equal(bitnet_file.pack(trits()), pack_weights(trits().clone()))
    assert torch.equal(bitnet_file.unpack(bitnet_file.pack(trits())), trits().float())


def test_a_code_that_stands_for_nothing_is_refused() -> None:
    packed = bitnet_file.pack(trits())
    packed[1, 2] |= 3
    with pytest.raises(BadInput, match="none of -1, 0 and 1"):
        bitnet_file.unpack(packed)


def test_a_matrix_that_was_trained_ternary_is_kept_as_it_is() -> None:
    steps, scale = bitnet.levels(trits() * torch.tensor(0.0371, dtype=torch.bfloat16))
    assert torch.equal(steps, trits())
    assert scale == float(torch.tensor(0.0371, dtype=torch.bfloat16))


def test_any_other_matrix_is_rounded_by_the_mean_of_its_absolute_values() -> None:
    """Equations 1 to 3 of the paper, written out; and as the class of transformers has it that trains with them."""
    from transformers.integrations.bitnet import WeightQuant

    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    steps, scale = bitnet.levels(weight)
    gamma = weight.abs().sum() / (8 * 16)
    by_hand = torch.where((weight / gamma).abs() > 0.5, torch.sign(weight), torch.zeros(()))
    assert torch.equal(steps.float(), by_hand)
    assert scale == pytest.approx(float(gamma))
    torch.compiler.set_stance("force_eager")
    try:
        theirs = WeightQuant.apply(weight)
    finally:
        torch.compiler.set_stance("default")
    assert torch.allclose(steps * scale, theirs)


def test_a_matrix_of_zeros_stays_one() -> None:
    steps, scale = bitnet.levels(torch.zeros(4, 4))
    assert not steps.any()
    assert scale > 0


def copy_of_the_sibling(folder: Path, **settings: object) -> Path:
    shutil.copytree(reference.TERNARY_DIR, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def given(folder: Path, out: Path) -> dict[str, object]:
    """What is kept of the answers of a given BitNet checkpoint: the reload check's file."""
    out.mkdir()
    config = json.loads((folder / "config.json").read_text())
    model = Model(name="given", path=str(folder))
    request = QuantizeRequest(
        model_dir=folder, out_dir=out, origin=prequantized.origin(model, config), calibration=None, device="cpu", seed=0
    )
    prequantized.quantize(request)
    kept: dict[str, object] = json.loads((out / reload.FILE).read_text())
    return kept


def test_a_given_checkpoint_is_read_a_second_time(tmp_path: Path) -> None:
    assert "inputs of 8 bits" in str(given(copy_of_the_sibling(tmp_path / "plain"), tmp_path / "out")["by"])


def test_a_checkpoint_whose_layers_do_more_than_their_packed_weights_say_is_not_read_a_second_time(tmp_path: Path) -> None:
    kept = given(copy_of_the_sibling(tmp_path / "normed", use_rms_norm=True), tmp_path / "out")
    assert "its layers normalize their inputs by weights of their own" in str(kept["skip"])


def test_a_scale_without_a_weight_is_no_packed_layer(tmp_path: Path) -> None:
    folder = copy_of_the_sibling(tmp_path / "damaged")
    state = safetensors_file.tensors(folder)
    del state["model.layers.0.mlp.up_proj.weight"]
    safetensors_file.save(state, folder / safetensors_file.MODEL)
    assert len(bitnet_file.packed_layers(folder)) == 5 * 7 - 1


def test_the_sibling_is_small_and_holds_nothing_but_ternary_layers() -> None:
    folder = reference.TERNARY_DIR
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    packed = bitnet_file.packed_layers(folder)
    assert len(packed) == 5 * 7
    assert "license: apache-2.0" in (folder / "README.md").read_text()


def test_the_plain_model_is_what_the_packed_one_stands_for(tmp_path: Path) -> None:
    plain = unpacked.folder(reference.TERNARY_DIR, tmp_path)
    assert unpacked.known(reference.TERNARY_DIR, tmp_path) == plain
    held, stated = find.tensors(plain), unpacked.tensors(reference.TERNARY_DIR)
    assert held == stated
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    for name, tensor in safetensors_file.tensors(plain).items():
        assert tensor.dtype == torch.bfloat16
        if "_proj" in name:
            assert len(tensor.abs().unique()) == 2, name  # zero and one magnitude
    assert (plain / "tokenizer.json").read_bytes() == (reference.MODEL_DIR / "tokenizer.json").read_bytes()


def test_another_content_gets_another_plain_model(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(reference.TERNARY_DIR, other)
    (other / "README.md").write_text("another card\n")
    assert unpacked.folder(other, tmp_path) != unpacked.folder(reference.TERNARY_DIR, tmp_path)


def test_a_damaged_packed_model_says_why_it_cannot_be_unpacked(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(reference.TERNARY_DIR, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quantization_config"}))
    with pytest.raises(BadInput, match="names no BitNet quantization"):
        unpacked.folder(other, tmp_path / "cache")
    assert not (tmp_path / "cache" / "unpacked").exists() or not any((tmp_path / "cache" / "unpacked").iterdir())


def test_the_plan_knows_its_shape_without_torch(tmp_path: Path) -> None:
    suite = tmp_path / "one.yaml"
    suite.write_text("name: one\nmodels: [reference-ternary]\nbaseline: bf16\nmethods: {bf16: , bitnet: }\nprobes: [size]\n")
    program = (
        "import sys; sys.modules['torch'] = None\nfrom pathlib import Path; from harness.suite import matrix\n"
        f"print([(p.cell.label, p.estimated_bpw) for p in matrix.plan(Path({str(suite)!r}), device='cpu').cells])"
    )
    here = {"PYTHONPATH": str(Path(find.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=here)
    assert done.stdout.startswith("[('bf16', 16"), done.stderr[-2000:]
    planned = matrix.plan(suite, device="cpu")
    assert [p.cell.label for p in planned.cells] == ["bf16", "bitnet 1.58-bit"]


SUITE = """
name: one
models: [reference-ternary]
baseline: bf16
methods: {bf16: , bitnet: , rtn: {bits: 2, group_size: 64}}
corpora: [{corpus: reference, window: 256, tokens: 2048}]
probes: [size, perplexity, divergence]
"""


@pytest.mark.slow
def test_a_model_of_its_kind_loses_next_to_nothing_where_plain_rounding_breaks_it(tmp_path: Path) -> None:
    from harness import store
    from harness.report.view import view

    (tmp_path / "one.yaml").write_text(SUITE)
    command = [sys.executable, "-m", "harness.cli", "run", "one.yaml", "--cache", "cache", "--report", "one.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shown = view(store.read(tmp_path / "results" / "one"))
    column = shown.column("kl_mean", "reference")
    assert column is not None
    of = {cell.label: cell.values[column.key].value for cell in shown.cells}
    assert of["bitnet 1.58-bit"] < 0.002 < 1 < of["rtn 2-bit g64"]
    bits = shown.column("bpw_quantized")
    assert bits is not None
    by_hand = 2 + 16 * 35 / (5 * (4 * 256 * 256 + 3 * 256 * 768))  # four weights to a byte, and 16 bits for each of 35 matrices
    assert {c.label: c.values[bits.key].value for c in shown.cells}["bitnet 1.58-bit"] == pytest.approx(by_hand)
    assert METHODS["bitnet"].bits_per_weight(Scheme(method="bitnet", bits=1.58, options={})) == 2
