"""ft, ft+ptq, qat and adapters on a tiny Llama, by their libraries: what is packed is what the library rounded to, what was
trained is compared with what was trained, and an adapter is what PEFT itself reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import envs
from harness.errors import BadLedger, Unsupported
from harness.formats import gptq_file, gptq_pack, safetensors_file
from harness.formats.gptq_pack import Codes
from harness.methods import METHODS, against_source, lora, reload
from harness.methods.base import LoadRequest, QuantizeRequest, resolve_options
from harness.models import build, source
from harness.spec import Quantized, Running, Scheme
from harness.training import weights
from tests.tiny_llama import llama, tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    # GPTQModel leaves temporary folders to the collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROWS = [[3 + (7 * i * i + 11 * row) % 500 for i in range(32)] for row in range(16)]
TRAIN: dict[str, Any] = {"steps": 4, "rows": 2, "rate": 1e-3, "loss": "ce"}


def lacking(method: str) -> pytest.MarkDecorator:
    """Skips a test of a method whose packages are not here, and says how to add them."""
    absent = envs.missing(METHODS[method])
    why = "" if absent is None else f"{', '.join(absent.packages)} not installed; add with: {absent.install}"
    return pytest.mark.skipif(absent is not None, reason=why)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A view of a tiny checkpoint."""
    root = tmp_path_factory.mktemp("trained")
    llama(dtype=torch.bfloat16, num_attention_heads=2).save_pretrained(root / "source")
    tokenizer().save_pretrained(root / "source")
    source.make(root / "source", root / "view")
    return root / "view"


def request(folder: Path, out: Path, method: str, bits: float, **options: Any) -> QuantizeRequest:
    row = METHODS[method]
    train = {**TRAIN, **options.pop("train", {})}
    given = {**resolve_options(row, options, bits), "train": train, "calibration": {"corpus": "x"}}
    out.mkdir(parents=True, exist_ok=True)
    return QuantizeRequest(
        model_dir=folder,
        out_dir=out,
        origin=Quantized(scheme=Scheme(method=method, bits=bits, options=given)),
        calibration=ROWS,
        device="cpu",
        seed=0,
        training=out.parent / f"training-{method}-{bits:g}",
    )


def loaded(wish: QuantizeRequest) -> Any:
    build.carry(wish.model_dir, wish.out_dir)  # as the child does when the artifact is written
    return METHODS[wish.scheme.method].load(
        LoadRequest(
            artifact_dir=wish.out_dir,
            model_dir=wish.model_dir,
            origin=wish.origin,
            running=Running(engine="transformers"),
            device="cpu",
        )
    )


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_packed_codes_unpack_to_what_they_were(bits: int) -> None:
    torch.manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (6, 96))
    packed = gptq_pack.pack(codes, bits)
    assert packed.shape == (6, 96 * bits // 32)
    assert torch.equal(gptq_file.unpack(packed, bits, 96), codes.to(torch.int32))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_a_packed_layer_is_its_codes_times_its_scales(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(bits)
    half = 1 << (bits - 1)
    held = Codes(codes=torch.randint(-half, half, (64, 128)).to(torch.int8), scales=torch.rand(64, 4).bfloat16() / 50)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text('{"model_type": "llama"}')
    state = gptq_pack.tensors("a", held, bits)
    gptq_pack.write(tmp_path, state, bits=bits, group_size=32, source=tmp_path / "source")
    read = gptq_file.Reader(tmp_path)
    expected = held.codes.float() * held.scales.float().repeat_interleave(32, dim=1)
    assert torch.equal(read.weight("a"), expected)
    codes, scales = read.codes("a")
    assert torch.equal(codes, held.codes)
    assert torch.equal(scales.float(), held.scales.float())


def test_a_scale_that_float16_does_not_hold_is_refused() -> None:
    held = Codes(codes=torch.zeros(32, 32, dtype=torch.int8), scales=torch.full((32, 1), 1e-9).bfloat16())
    with pytest.raises(Unsupported, match="beyond the range of float16"):
        gptq_pack.tensors("a", held, 4)


@lacking("qat")
@pytest.mark.slow
def test_training_with_rounded_weights_sees_the_rounding_that_it_ends_with(folder: Path) -> None:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    from harness.methods import _packed_intx

    for bits in (4.0, 3.0, 2.0):
        scheme = request(folder, folder.parent / "unused", "qat", bits).scheme
        model = torch.nn.Sequential(torch.nn.Linear(256, 64, bias=False, dtype=torch.bfloat16))
        quantize_(model, QATConfig(_packed_intx.config(scheme), step="prepare"))
        layer: Any = model[0]
        seen = layer.weight_fake_quantizer(layer.weight).detach()
        quantize_(model, QATConfig(_packed_intx.config(scheme), step="convert"))
        converted: Any = model[0].weight
        assert torch.equal(converted.dequantize(), seen)


@lacking("qat")
@pytest.mark.slow
@pytest.mark.parametrize(("bits", "kind"), [(4.0, "weights"), (3.0, "weights"), (2.0, "weights"), (4.0, "dynamic")])
def test_qat_packs_exactly_what_the_library_converts_its_trained_model_to(
    folder: Path, tmp_path: Path, bits: float, kind: str
) -> None:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    from harness.methods import _packed_intx
    from harness.training import loop
    from harness.training.loop import Recipe

    wish = request(folder, tmp_path / "qat", "qat", bits, type=kind)
    METHODS["qat"].quantize(wish)
    model = build.plain(folder, torch.float32, "cpu")
    layers = set(build.decoder_linears(model))
    config = _packed_intx.config(wish.scheme)
    quantize_(model, QATConfig(config, step="prepare"), filter_fn=lambda _, name: name in layers)
    loop.train(model, ROWS, Recipe(**TRAIN), folder=tmp_path / "own")
    model.bfloat16()
    quantize_(model, QATConfig(config, step="convert"), filter_fn=lambda module, _: isinstance(module, torch.nn.Linear))
    read = gptq_file.Reader(wish.out_dir)
    assert set(read.layers) == layers
    for name in read.layers:
        theirs: Any = model.get_submodule(name).weight
        assert torch.equal(read.weight(name).bfloat16(), theirs.dequantize())
    again = loaded(wish)
    assert reload.check(again, wish.out_dir) is None
    ids = torch.tensor(ROWS[:1])
    with torch.no_grad():
        ours, expected = (each(input_ids=ids, use_cache=False).logits.float() for each in (again, model.eval()))
    assert float((ours - expected).abs().max()) < 0.05 * float(expected.abs().max())
    held = {proof.stored_dtype for proof in METHODS["qat"].kernels(again)}
    assert held == ({"int8"} if kind == "dynamic" else {"uint8"} if bits == 4 else {"int32"}), held


@lacking("ft+ptq")
@pytest.mark.slow
def test_ft_and_its_rounding_share_one_training_and_the_artifact_is_held_against_it(folder: Path, tmp_path: Path) -> None:
    ft = request(folder, tmp_path / "ft", "ft", 16.0)
    METHODS["ft"].quantize(ft)
    assert reload.check(loaded(ft), ft.out_dir) is None
    trained = weights.view(ft.training or tmp_path)
    assert source.known(trained) is not None
    plain, changed = safetensors_file.tensors(folder), safetensors_file.tensors(ft.out_dir)
    assert plain.keys() == changed.keys()
    assert all(changed[name].shape == tensor.shape for name, tensor in plain.items())
    assert any(not torch.equal(changed[name], tensor) for name, tensor in plain.items())
    steps: list[int] = []
    rounded = request(folder, tmp_path / "ptq", "ft+ptq", 4.0)
    rounded = QuantizeRequest(
        model_dir=folder,
        out_dir=rounded.out_dir,
        origin=rounded.origin,
        calibration=ROWS,
        device="cpu",
        seed=0,
        training=ft.training,
        progress=lambda done, total: steps.append(done),
    )
    METHODS["ft+ptq"].quantize(rounded)
    assert steps == [], "it was trained a second time"
    for wish in (ft, rounded):
        row = METHODS[wish.scheme.method]
        assert row.weights is not None
        against_source.check(row.compared_with(wish), row.weights(wish))
    assert METHODS["ft"].weights is not None
    with pytest.raises(BadLedger, match="the values are not the source's"):
        against_source.check(folder, METHODS["ft"].weights(ft))
    log = weights.read_log(rounded.out_dir)
    assert log is not None
    assert len(log.losses) == 4
    assert log.tokens == 8 * 32


@pytest.mark.parametrize(
    ("bits", "kind", "said"), [(2.0, "dynamic", "write bits: 4"), (4.0, "dynamic", None), (3.0, "weights", None)]
)
def test_dynamic_activations_go_with_four_bits(bits: float, kind: str, said: str | None) -> None:
    row = METHODS["qat"]
    scheme = Scheme(method="qat", bits=bits, options=resolve_options(row, {"type": kind}, bits))
    reason = row.supports(scheme, None, "cpu")
    assert (reason is None) if said is None else (said in str(reason))


ADAPTERS = [
    pytest.param("qlora", 4.0, marks=lacking("qlora")),
    pytest.param("hqq+lora", 2.0, marks=lacking("hqq+lora")),
    pytest.param("gptq+lora", 4.0, marks=lacking("gptq+lora")),
    pytest.param("eora", 2.0, marks=lacking("eora")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "bits"), ADAPTERS)
def test_an_adapter_is_trained_stored_apart_counted_and_run_beside_its_base(
    folder: Path, tmp_path: Path, method: str, bits: float
) -> None:
    wish = request(folder, tmp_path / "out", method, bits, rank=4)
    row = METHODS[method]
    row.quantize(wish)
    model = loaded(wish)
    assert reload.check(model, wish.out_dir) is None
    ledger = row.ledger(wish.out_dir, wish.scheme)
    adapter = [tensor for tensor in ledger if tensor.role == "adapter"]
    sizes = {entry.name: entry.shape for entry in safetensors_file.checkpoint(folder).values()}
    layers = {tensor.layer for tensor in ledger if tensor.layer}
    assert {tensor.layer for tensor in adapter} == layers
    by_hand = sum(4 * sum(sizes[f"{layer}.weight"]) * 16 for layer in layers)
    assert sum(tensor.bits for tensor in adapter) == by_hand
    proofs = row.kernels(model)
    assert {proof.layer for proof in proofs} == layers
    assert not any(proof.dequantized for proof in proofs)
    assert all(proof.op.endswith("+ adapter") for proof in proofs)
    held = safetensors_file.tensors_of(wish.out_dir / lora.FOLDER / lora.TENSORS)
    assert any(bool(tensor.any()) for name, tensor in held.items() if "lora_B" in name), "nothing was learned"
    assert row.weights is not None
    against_source.check(row.compared_with(wish), row.weights(wish))
    damaged = {name: torch.full_like(tensor, 0.05) for name, tensor in held.items()}
    safetensors_file.save(damaged, wish.out_dir / lora.FOLDER / lora.TENSORS)
    assert reload.check(loaded(wish), wish.out_dir) is not None


@lacking("qlora")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers so
def test_the_stored_adapter_is_one_that_peft_reads_by_itself(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    from harness.methods import bnb

    wish = request(folder, tmp_path / "out", "qlora", 4.0, rank=4)
    METHODS["qlora"].quantize(wish)
    base = bnb.load(
        LoadRequest(
            artifact_dir=wish.out_dir,
            model_dir=folder,
            origin=wish.origin,
            running=Running(engine="transformers"),
            device="cpu",
        )
    )
    theirs = PeftModel.from_pretrained(base, str(wish.out_dir / lora.FOLDER), autocast_adapter_dtype=False).eval()
    ids = torch.tensor(ROWS[:1])
    with torch.no_grad():
        ours, expected = (each(input_ids=ids, use_cache=False).logits.float() for each in (loaded(wish), theirs))
    assert torch.equal(ours, expected)


def test_merging_an_adapter_is_refused_with_the_reason() -> None:
    row = METHODS["qlora"]
    scheme = Scheme(method="qlora", bits=4.0, options=resolve_options(row, {"merge": True}, 4.0))
    assert "merged back to 2.986" in str(row.supports(scheme, None, "cpu"))


def test_peft_is_where_ci_looks_for_it() -> None:
    assert importlib.util.find_spec("peft") is not None or envs.missing(METHODS["qlora"]) is not None
