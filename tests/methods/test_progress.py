"""While a library quantizes, the line of a run moves: which layer it is, or what the library has said last."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from harness import cli_progress
from harness.child import events, progress
from harness.child.events import Event, Progress
from harness.costs import CellForecast
from harness.forecast.estimate import Forecast
from harness.run import runner, stages
from harness.run.observer import Silent
from harness.spec import Cell
from harness.suite import matrix
from tests.right.cases import cell, checkpoint
from tests.tiny_llama import llama

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for expert in reversed(self.experts):
            x = expert(x)
        return x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.others = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
        self.layers = nn.ModuleList([Block() for _ in range(3)])


def test_the_layer_that_runs_is_known_whatever_calls_it() -> None:
    watched = progress._Layers(3)
    seen = []
    with watched.hooks():
        model = Model()
        for other in model.others:
            other(torch.zeros(2))
        seen.append(watched.now)
        for layer in model.layers[:2]:  # a list of its own, as transformers makes in every pass
            layer(torch.zeros(2))
            seen.append(watched.now)
        model.layers[2](torch.zeros(2))
        seen.append(watched.now)
        model.layers[0](torch.zeros(2))
        seen.append(watched.now)
    assert seen == [0, 1, 2, 3, 1], "neither another list nor the experts of a layer are taken for layers"
    model.layers[1](torch.zeros(2))
    assert watched.now == 1, "the hooks are gone"


def test_watching_changes_no_answer() -> None:
    ids = torch.arange(8)[None]
    plain = llama()(ids).logits
    with progress._Layers(2).hooks():
        assert torch.equal(llama()(ids).logits, plain)


def told_of(folder: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "REPEAT_SECONDS", 0.02)
    told: list[Event] = []
    twice = threading.Event()

    def tell(event: Event) -> None:
        told.append(event)
        if len(told) >= 2:
            twice.set()

    with progress.layers(folder, tell, log=log, torch=False):
        assert twice.wait(60)
    return told


def test_what_runs_no_layer_is_shown_by_the_last_line_that_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.txt").write_text("starting\n10%|#   | 1/10\r20%|##  | 2/10\r")
    told = told_of(tmp_path, tmp_path / "log.txt", monkeypatch)
    assert told[0] == Progress(done=0, total=0, unit="layer", said="20%|##  | 2/10")
    assert told[1] == told[0], "a sign of life"


def test_an_event_of_progress_is_read_as_it_was_written() -> None:
    event = Progress(done=3, total=30, unit="layer", said="ä")
    assert events.read_event(events.event_line(event)) == event


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []

    def progress(self, cell: Cell, what: str, how_far: str) -> None:
        self.lines.append((cell.method, what, how_far))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq", "autoround"])
def test_a_library_is_followed_from_layer_to_layer(method: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "mine", model=llama(num_hidden_layers=8))
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"name: mine\nmodels: [{{path: mine}}]\nprobes: [quantize]\nmethods: {{{method}: {{bits: 4}}}}\n"
        "calibration: {corpus: reference, samples: 64, length: 128}\n"
    )
    heard = Heard()
    settings = runner.Settings(results=tmp_path / "results", cache=tmp_path / "cache", threads=1)
    runner.run(matrix.plan(suite, device="cpu"), settings, heard)
    places = [
        int(found[1]) for name, what, line in heard.lines if (found := re.fullmatch(r"layer (\d) of 8", line)) and name == method
    ]
    assert len(places) >= 2, heard.lines
    assert places == sorted(places)
    assert {what for _, what, _ in heard.lines} == {"quantize"}


def test_in_a_pipe_a_line_comes_at_most_every_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli_progress.PROGRESS_SECONDS == 30
    asked = cell("gptq", 4)
    with cli_progress.Progress() as shown:
        shown.begin(run=Path("run"), questions=2, stored=0, forecast=Forecast(cells=(), whole=CellForecast(), runs=0))
        shown.doing(asked, "quantize")
        shown.progress(asked, "quantize", "layer 1 of 30")
        assert "layer" not in capsys.readouterr().out
        monkeypatch.setattr(cli_progress, "PROGRESS_SECONDS", 0.0)
        shown.progress(asked, "quantize", "layer 2 of 30")
        shown.progress(asked, "quantize", "\x1b[31mnearly\x07 there")
        shown.progress(asked, "quantize", "")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{asked.name}: quantize, layer 2 of 30 (0 s)"
    assert "\x1b" not in lines[1]
    assert "\x07" not in lines[1]
    assert lines[2] == f"{asked.name}: quantize (0 s)"


def test_how_far_is_said_in_words() -> None:
    assert stages._how_far(Progress(done=3, total=30, unit="layer")) == "layer 3 of 30"
    assert stages._how_far(Progress(done=2048, total=65536, unit="token")) == "2,048 of 65,536 tokens"
    assert stages._how_far(Progress(done=0, total=0, unit="layer", said="Compressing")) == "Compressing"
    assert json.loads(events.event_line(Progress(done=1, total=2, unit="token")))["event"] == "progress"
