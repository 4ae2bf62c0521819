"""Headers, bit streams and the clip search against independent counts."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import BadInput
from harness.formats import gptq_file, safetensors_file
from harness.methods import awq, quanto


def test_a_header_gives_names_shapes_and_bits(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(7, dtype=torch.int32)}, tmp_path / "m.safetensors")
    found = {t.name: (t.dtype, t.shape, t.bits) for t in safetensors_file.stored(tmp_path)}
    assert found == {"a": ("BF16", (3, 5), 240), "b": ("I32", (7,), 224)}


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, (100).to_bytes(8, "little") + b"{not json" * 20])
def test_a_damaged_file_is_bad_input(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=r"m\.safetensors"):
        safetensors_file.stored(tmp_path)


@pytest.mark.parametrize(("bits", "count"), list(itertools.product((2, 3, 4, 8), (32, 64))))
def test_a_bit_stream_is_read_as_a_long_integer_would_be(bits: int, count: int) -> None:
    source = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (3, count), generator=source)
    words = []
    for row in codes.tolist():
        number = sum(code << (bits * i) for i, code in enumerate(row))
        unsigned = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(count * bits // 32)]
        words.append([u - 2**32 if u >= 2**31 else u for u in unsigned])
    assert torch.equal(gptq_file.unpack(torch.tensor(words, dtype=torch.int32), bits, count), codes.int())


@pytest.mark.parametrize(("bits", "sym"), list(itertools.product((2, 3, 4), (True, False))))
def test_the_clip_search_finds_the_bounds_that_a_direct_search_finds(bits: int, sym: bool) -> None:
    source = torch.Generator().manual_seed(1)
    group, rows, tokens = 32, 64, 96
    weight = torch.randn(rows, 2 * group, generator=source) ** 3
    inputs = torch.randn(tokens, 2 * group, generator=source) * torch.rand(2 * group, generator=source)
    found = awq.best_clip(weight, inputs, bits=bits, sym=sym, group=group)
    clipped = 0
    for row, part in itertools.product(range(0, rows, 7), range(2)):
        w, x = weight[row, part * group : (part + 1) * group], inputs[:, part * group : (part + 1) * group]
        errors = []
        for step in range(10):
            bound = w.abs().max() * (1 - step / 20)
            errors.append(float((x @ (_direct(w.clamp(-bound, bound), bits, sym) - w)).pow(2).mean()))
        chosen = round(float(20 * (1 - found[row, part, 0] / w.abs().max())))
        assert errors[chosen] <= min(errors) * (1 + 1e-4)
        clipped += chosen > 0
    assert clipped > 0


def _direct(w: torch.Tensor, bits: int, sym: bool) -> torch.Tensor:
    """One group rounded, written out for one scale and zero point."""
    if sym:
        scale = float(w.abs().max()) / (2 ** (bits - 1) - 1)
        return torch.tensor([max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(v / scale))) * scale for v in w.tolist()])
    scale = float(w.max() - w.min()) / (2**bits - 1)
    zero = max(0, min(2**bits - 1, -round(float(w.min()) / scale)))
    return torch.tensor([(max(0, min(2**bits - 1, round(v / scale) + zero)) - zero) * scale for v in w.tolist()])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_int8_codes_are_put_where_torchs_kernel_can_read_them() -> None:
    pytest.importorskip("optimum.quanto")
    space = torch.zeros(16 * 64 + 32, dtype=torch.int8)
    start = -space.data_ptr() % 16 + 8  # where a file's tensor may lie; the kernel itself would end the process there
    codes = space[start : start + 16 * 64].view(16, 64).copy_(torch.arange(16 * 64).view(16, 64) % 100)
    scale = torch.ones(16, 1, dtype=torch.bfloat16)
    weight = quanto._tensor({"data": codes, "scale": scale}, torch.Size((16, 64)), 8.0, "int", -1)
    assert weight._data.data_ptr() % 16 == 0
    assert torch.equal(weight._data, codes)
    assert torch.equal(torch.nn.functional.linear(scale.new_ones(1, 64), weight)[0], codes.to(scale.dtype).sum(dim=1))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gptqmodel", "openvino_telemetry")), reason="needs both"
)
def test_gptqmodel_is_imported_without_openvino_which_reports_each_import_home() -> None:
    code = (
        "import sys; from harness.methods import _gptqmodel; _gptqmodel.import_library(); "
        "print([name for name in sys.modules if name.startswith('openvino')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
