"""The training loop: the same weights after a kill as without, a rate that rises and falls, losses that mean what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.errors import BadInput, Nonfinite
from harness.training import loop
from harness.training.loop import Recipe
from tests.tiny_llama import llama

ROWS = [[3 + (7 * i * i + 11 * row) % 500 for i in range(24)] for row in range(24)]
RECIPE = Recipe(steps=12, rows=2, rate=1e-3)
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Killed(Exception):
    pass


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_run_that_was_interrupted_and_goes_on_gives_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = llama()
    log = loop.train(whole, ROWS, RECIPE, folder=tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 1e9)

    def dies(done: int, total: int) -> None:
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        loop.train(llama(), ROWS, RECIPE, folder=tmp_path / "cut", progress=dies)
    seen: list[int] = []
    other = llama()
    again = loop.train(other, ROWS, RECIPE, folder=tmp_path / "cut", progress=lambda done, total: seen.append(done))
    assert seen == list(range(7, 13))  # the seventh step was not in the checkpoint
    assert again.losses == log.losses
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(other).values(), strict=True))


CHILD = """
import sys, torch
from pathlib import Path
from harness.training import loop
from harness.training.loop import Recipe
from tests.tiny_llama import llama
loop.SAVE_SECONDS, loop.SAVE_SHARE = 0.0, 1e9
torch.set_num_threads(1)
rows = [[3 + (7 * i * i + 11 * row) % 500 for i in range(24)] for row in range(400)]
model = llama()
loop.train(model, rows, Recipe(steps=int(sys.argv[2]), rows=2, rate=1e-3), folder=Path(sys.argv[1]),
           progress=lambda done, total: print(done, flush=True))
torch.save({n: p.detach() for n, p in model.named_parameters()}, Path(sys.argv[1]) / "weights.pt")
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_trains_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", CHILD, str(folder), "40"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    with start(tmp_path / "cut") as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 15:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "weights.pt").exists()
    with start(tmp_path / "cut") as second:
        assert second.stdout is not None
        done = [int(line) for line in second.stdout]
    assert second.returncode == 0
    assert done[0] > 10, "it began anew"
    assert done[-1] == 40
    straight = start(tmp_path / "straight")
    straight.communicate()
    one, other = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("cut", "straight"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_training_lowers_the_loss_of_rows_that_come_again(tmp_path: Path) -> None:
    log = loop.train(llama(), ROWS[:2] * 12, RECIPE, folder=tmp_path)
    assert log.losses[-1] < log.losses[0]
    assert log.tokens == 24 * 24


def test_the_rate_rises_over_a_twentieth_of_the_steps_and_falls_to_nothing() -> None:
    rates = [loop.factor(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (4, 5)
    assert rates[-1] == pytest.approx(1 / 96)
    assert loop.factor(0, 1) == 1.0


def test_a_model_has_no_divergence_from_itself_to_learn(tmp_path: Path) -> None:
    model = llama()
    log = loop.train(model, ROWS, Recipe(steps=1, rows=2, rate=1e-6, loss="kl"), folder=tmp_path, teacher=llama())
    assert abs(log.losses[0]) < 1e-2  # the products may be in bfloat16


def test_cross_entropy_is_that_of_the_next_token(tmp_path: Path) -> None:
    model = llama()
    ids = torch.tensor(ROWS[:2])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.float()
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    log = loop.train(model, ROWS, Recipe(steps=1, rows=2, rate=1e-6), folder=tmp_path)
    assert log.losses[0] == pytest.approx(float(expected), rel=5e-3)


def test_a_loss_that_is_no_number_ends_the_training_and_says_what_to_change(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Nonfinite, match=r"loss of step 1 of 12 is nan; lower train: rate \(0.001\)"):
        loop.train(model, ROWS, RECIPE, folder=tmp_path)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="4 rows for 12 steps of 2"):
        loop.train(llama(), ROWS[:4], RECIPE, folder=tmp_path)


def test_a_step_is_cut_into_parts_without_changing_what_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = llama(), llama()
    loop.train(whole, ROWS, Recipe(steps=2, rows=4, rate=1e-3), folder=tmp_path / "whole")
    monkeypatch.setattr(loop, "LOGITS_AT_ONCE", 1)
    log = loop.train(parts, ROWS, Recipe(steps=2, rows=4, rate=1e-3), folder=tmp_path / "parts")
    assert log.losses[0] > 0
    for one, other in zip(weights(whole).values(), weights(parts).values(), strict=True):
        assert torch.allclose(one, other, atol=5e-3)
