"""The reload check: what it lets pass, what it finds, and that a missing check is never a pass."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.errors import BadInput
from harness.methods import reload
from harness.models import build
from tests.tiny_llama import llama, nudged, windows

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
ROWS = windows(2, reload.LENGTH)


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.fixture
def artifact(model: Any, tmp_path: Path) -> Path:
    reload.write(model, ROWS, tmp_path, by="this test", noisy=lambda: copy.deepcopy(model).to(torch.bfloat16))
    return tmp_path


def kept(artifact: Path) -> reload.KeptAnswers:
    return reload.KeptAnswers(**json.loads((artifact / reload.FILE).read_text()))


def test_the_model_itself_passes_at_no_distance(model: Any, artifact: Path) -> None:
    stored = json.loads((artifact / reload.FILE).read_text())
    assert len(stored["ids"]) == 32
    assert reload.distance(reload.KeptAnswers(**stored), reload.answers(model, ROWS)) < 1e-9
    assert reload.check(model, artifact) is None


def test_the_same_weights_in_bfloat16_pass(model: Any, artifact: Path) -> None:
    stored = json.loads((artifact / reload.FILE).read_text())
    assert 0 < stored["floor"] < reload.LIMIT_NATS
    assert reload.check(copy.deepcopy(model).to(torch.bfloat16), artifact) is None


def test_other_weights_are_found(model: Any, artifact: Path) -> None:
    reason = reload.check(nudged(model, 0.3), artifact)
    assert reason is not None
    assert "this test" in reason


def test_answers_that_are_not_finite_are_found(model: Any, artifact: Path) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    assert reload.check(broken, artifact) is not None


def test_another_vocabulary_is_found(artifact: Path) -> None:
    assert reload.distance(kept(artifact), torch.zeros(32, 8)) == float("inf")


def test_a_missing_check_is_a_reason_and_no_pass(model: Any, tmp_path: Path) -> None:
    assert "nothing shows" in (reload.check(model, tmp_path) or "")


def test_an_unquantized_artifact_says_that_there_is_nothing_to_compare(model: Any, tmp_path: Path) -> None:
    reload.skip(tmp_path, "unquantized")
    assert reload.check(model, tmp_path) is None


def test_the_coarse_divergence_is_a_lower_bound_of_the_full_one(model: Any, artifact: Path) -> None:
    other = reload.answers(nudged(model, 0.3), ROWS)
    exact = reload.answers(model, ROWS)
    full = float((exact.exp() * (exact - other)).sum(-1).mean())
    coarse = reload.distance(kept(artifact), other)
    assert 0 < coarse <= full


def test_rows_come_from_the_calibration_text_where_there_is_one() -> None:
    rows = reload.rows_for(512, [list(range(40)), list(range(100, 140))])
    assert rows == [list(range(17)), list(range(100, 117))]
    assert reload.rows_for(512, None) == reload.rows_for(512, None)
    assert {len(row) for row in reload.rows_for(512, [[1, 2]])} == {17}


def test_a_bias_that_the_artifact_lacks_is_bad_input(tmp_path: Path) -> None:
    biased = llama(attention_bias=True)
    biased.config.save_pretrained(tmp_path)
    layers = list(build.decoder_linears(biased))
    rest = {name: tensor for name, tensor in build.own_state(biased).items() if name.removesuffix(".weight") not in layers}
    assert build.without(tmp_path, layers, rest, device="cpu").get_submodule(layers[0]).bias is not None
    del rest[f"{layers[0]}.bias"]
    with pytest.raises(BadInput, match="bias"):
        build.without(tmp_path, layers, rest, device="cpu")
    assert build.without(tmp_path, layers, rest, device="cpu", bias=False).get_submodule(layers[0]).bias is None


class Allocated(TorchDispatchMode):
    """Counts the elements of every tensor that an operation makes outside the meta device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type != "meta":
            self.most = max(self.most, made.numel())
        return made


def test_layers_that_are_packed_are_never_made_unpacked(model: Any, tmp_path: Path) -> None:
    wide = llama(intermediate_size=4096)
    wide.config.save_pretrained(tmp_path)
    layers = list(build.decoder_linears(wide))
    rest = {name: tensor for name, tensor in build.own_state(wide).items() if name.removesuffix(".weight") not in layers}
    with Allocated() as allocated:
        found = build.without(tmp_path, layers, rest, device="cpu")
    assert type(found) is type(wide)
    assert [name for name in layers if found.get_submodule(name).weight is not None] == []
    assert torch.equal(found.model.norm.weight, wide.model.norm.weight.to(torch.bfloat16))
    widest = max(wide.get_parameter(f"{name}.weight").numel() for name in layers)
    assert allocated.most <= max(tensor.numel() for tensor in rest.values()) < widest
