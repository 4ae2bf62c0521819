"""Servers that a suite's commands start, in a real run: measured, ended, and each way of going wrong told as a cell's failure."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from harness import store
from harness.run import runner
from harness.spec import Record
from harness.store import Run
from harness.suite.matrix import plan
from tests.openai_server import NAME
from tests.test_kept_servers import LITTLE, ROOT, free_port
from tests.tiny_llama import llama, text, tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="servers are started on Linux only"),
]
TINY = f"env PYTHONPATH={ROOT} {sys.executable} -m tests.serve_tiny {{artifact}} {{port}}"
BROKEN = f"{sys.executable} {LITTLE} {{port}}"


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield int(one.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("started")


@pytest.fixture(scope="module")
def run(folder: Path, taken: int) -> Run:
    model = folder / "tiny"
    llama().save_pretrained(model)
    tokenizer().save_pretrained(model)
    (folder / "text.txt").write_text(text(120))

    def server(name: str, serve: str, port: int | None = None, **more: object) -> dict[str, object]:
        url = f"http://127.0.0.1:{port or free_port()}/v1"
        served = {} if "{artifact}" not in serve else {"artifact": "fp32"}
        return {"name": name, "serve": serve, "url": url, "model": "little", "token_env": "SERVER_KEY", **served, **more}

    servers = [
        server("sound", TINY, model=NAME),
        server("mortal", f"{TINY} dies", model=NAME),
        server("fragile", BROKEN),
        server("broken", f"{BROKEN} broken tells"),
        server("mute", f"{BROKEN} mute", wait=1.5),
        server("taken", BROKEN, port=taken),
        server("missing", "no-such-server --port {port}"),
    ]
    suite: dict[str, object] = {
        "name": "started",
        "models": [{"path": str(model)}],
        "baseline": "fp32",
        "probes": ["perplexity", "memory", "serving"],
        "corpora": [{"path": "text.txt", "window": 64, "tokens": 256}],
        "memory": {"prompt": 32, "new": 4},
        "serving": {"concurrency": [2], "prompt": 16, "new": 4, "requests": 6, "budget": 60},
        "methods": {"fp32": None, "endpoint": servers},
    }
    with permitted(SERVER_KEY="swordfish-1234"):
        return measured(folder, suite)


def measured(folder: Path, suite: dict[str, object]) -> Run:
    path = folder / f"{suite['name']}.yaml"
    path.write_text(json.dumps(suite))
    settings = runner.Settings(results=folder / "results", cache=folder / "cache", threads=1)
    return store.read(runner.run(plan(path, device="cpu"), settings))


@contextmanager
def permitted(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= {"QUANT_HARNESS_SERVE": "1", **variables}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def record(run: Run, label: str, probe: str) -> Record:
    return next(r for r in run.records if r.cell.label == label and r.question.probe == probe)


def failure(run: Run, label: str, probe: str) -> tuple[str, str]:
    found = record(run, label, probe).failure
    assert found is not None, f"{label} has an answer to {probe}"
    return found.kind, found.message


def value(run: Run, label: str, metric: str) -> float:
    answers = [r.answer for r in run.records if r.cell.label == label and r.answer is not None]
    return next(m.value for answer in answers for m in answer.measurements if m.metric == metric)


def test_a_server_that_was_started_answers_as_the_artifact_that_it_serves(run: Run) -> None:
    assert value(run, "sound", "perplexity") == pytest.approx(value(run, "fp32", "perplexity"), rel=1e-3)


def test_its_memory_is_that_of_its_processes(run: Run) -> None:
    answer = record(run, "sound", "memory").answer
    assert answer is not None
    assert answer.facts["processes"] == 1
    assert value(run, "sound", "server_rss_bytes") > 100e6


def test_it_is_asked_under_load(run: Run) -> None:
    assert value(run, "sound", "served_tpot") > 0


def test_its_log_is_kept_without_its_token(run: Run, folder: Path) -> None:
    logs = [path.read_text() for path in (folder / "cache" / "served").iterdir()]
    assert any("serving on" in log for log in logs)
    assert any("my key is [hidden]." in log for log in logs)
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"swordfish" not in written


def test_a_server_that_dies_under_load_is_a_crash_with_its_last_words_and_costs_no_other_question(run: Run) -> None:
    kind, said = failure(run, "mortal", "serving")
    assert kind == "crash"
    assert "the server left with exit code 9" in said
    assert "no memory is left for another answer" in said
    assert value(run, "mortal", "perplexity") == pytest.approx(value(run, "sound", "perplexity"), rel=1e-6)


@pytest.mark.parametrize(
    ("label", "kind", "said"),
    [
        ("fragile", "crash", "the server left with exit code 7"),
        ("broken", "crash", "the server left with exit code 3 (before it answered); its log ends with 'cannot find the weights'"),
        ("mute", "timeout", "has not answered within 1.5 s; give it longer with `wait`"),
        ("taken", "environment", "is in use"),
        ("missing", "environment", "no-such-server: No such file or directory"),
    ],
)
def test_what_cannot_be_served_is_a_typed_failure_that_says_why(label: str, kind: str, said: str, run: Run) -> None:
    found = failure(run, label, "perplexity")
    assert found[0] == kind
    assert said in found[1]


def test_a_server_that_dies_of_everything_is_not_started_without_end(run: Run, folder: Path) -> None:
    logs = [path.read_text() for path in (folder / "cache" / "served").iterdir()]
    fragile = next(log for log in logs if "asked for a completion" in log)
    assert fragile.count("starting") <= 5


def test_no_server_is_left(run: Run) -> None:
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(LITTLE) in command or "tests.serve_tiny" in command]


NEEDED = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")


def test_llama_cpp_pythons_server_is_started_on_the_file_that_another_cell_has_written(tmp_path: Path) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; add with: pip install 'llama-cpp-python[server]'")
    command = f"{sys.executable} -m llama_cpp.server --model {{artifact}} --port {{port}} --model_alias {{name}}"
    server = {
        "name": "llama.cpp",
        "serve": f"{command} --n_threads {{threads}} --interrupt_requests false",
        "artifact": "gguf 4-bit Q4_K_M",
        "url": f"http://127.0.0.1:{free_port()}/v1",
        "model": "mine",
    }
    suite: dict[str, object] = {
        "name": "served",
        "models": ["reference"],
        "probes": ["memory", "serving"],
        "memory": {"prompt": 32, "new": 4},
        "serving": {"concurrency": [1], "prompt": 16, "new": 8, "requests": 6, "budget": 60},
        "methods": {"bf16": None, "gguf": {"bits": 4}, "endpoint": server},
    }
    with permitted():
        found = measured(tmp_path, suite)
    assert [r.failure for r in found.records if r.cell.label == "llama.cpp" and r.failure is not None] == []
    assert value(found, "llama.cpp", "served_ttft") > 0  # it counts no tokens in a stream, so there is no time per token
    assert value(found, "llama.cpp", "server_rss_bytes") > 20e6
    (log,) = (tmp_path / "cache" / "served").iterdir()
    assert "Q4_K" in log.read_text(errors="replace")
