"""A gguf export, served as its card says to, by llama.cpp's server over HTTP, gives the record's answers.

The server is that of llama-cpp-python, started with the command that the card prints; only the port is another one. It is asked
for the most probable next tokens after prefixes of the text that the record's perplexity was measured on. The record's raw
samples hold the log-probability of each of these tokens. Skipped where llama.cpp or the server's own packages are not installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from harness import reference, store

WINDOW, TOKENS = 256, 1024
PREFIXES = 120
MOST = 64
"""Tokens whose log-probabilities are asked for at each place."""
SAME_TOKEN, SAME_TEXT = 0.03, 0.01
"""Nats between the record and the server: of a token in the mean, and of the text, where signs cancel. The server decodes one
token at a time with attention written out, the record a whole window with the fused kernel, and products round their inputs to 8
bits: 0.011 and 0.001 apart on the machine where this was written. Another file or a shifted token is tenths of nats to nats
away."""

pytestmark = pytest.mark.slow

NEEDED = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The folder, the command that its card prints, and the record's log-probabilities [windows, tokens - 1]."""

    folder: Path
    command: list[str]
    log_probabilities: Any


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; add with: pip install 'llama-cpp-python[server]'")
    root = tmp_path_factory.mktemp("served")
    suite = {
        "name": "served",
        "models": ["reference"],
        "baseline": "bf16",
        "probes": ["size", "perplexity"],
        "corpora": [{"corpus": "reference", "window": WINDOW, "tokens": TOKENS}],
        "methods": {"bf16": None, "gguf": {"bits": 4}},
    }
    (root / "served.yaml").write_text(json.dumps(suite))
    harness(root, "run", "served.yaml")
    run = store.read(root / "results" / "served")
    record = next(r for r in run.records if r.cell.method == "gguf" and r.question.probe == "perplexity")
    assert record.answer is not None, record.failure
    blob = next(m.blob for m in record.answer.measurements if m.metric == "perplexity")
    harness(root, "export", "results/served", record.cell.label, "--to", "out")
    card = (root / "out" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```sh\n(python -m llama_cpp\.server .*)\n```", card)
    return Exported(
        folder=root / "out",
        command=shlex.split(command),
        log_probabilities=-np.load(io.BytesIO(run.blob(str(blob)))).astype(float),
    )


def harness(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "harness.cli", *arguments, "--cache", str(folder / "cache")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def served(exported: Exported) -> Iterator[str]:
    """The address of the server while it runs, once it answers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = [sys.executable if word == "python" else str(port) if word == "8000" else word for word in exported.command]
    log = exported.folder.parent / "server.log"
    with log.open("w") as out, subprocess.Popen(words, cwd=exported.folder, stdout=out, stderr=subprocess.STDOUT) as server:
        try:
            address = f"http://localhost:{port}/v1"
            end = time.monotonic() + 300
            while True:
                try:
                    asked(f"{address}/models")
                    break
                except OSError:
                    assert server.poll() is None, log.read_text()[-3000:]
                    assert time.monotonic() < end, log.read_text()[-3000:]
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()


def asked(address: str, data: dict[str, Any] | None = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def test_the_command_on_the_card_serves_what_was_measured(exported: Exported) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(exported.folder))
    ids = tokenizer(reference.HELDOUT_TEXT.read_text(encoding="utf-8"), verbose=False)["input_ids"][:WINDOW]
    asked_for, apart = 0, []
    with served(exported) as address:
        for place in range(8, WINDOW - 1):
            prefix = tokenizer.decode(ids[:place])
            if tokenizer(prefix)["input_ids"] != ids[:place]:
                continue  # as text it is cut into other tokens
            wish = {"prompt": prefix, "max_tokens": 1, "temperature": 0.0, "logprobs": MOST}
            (choice,) = asked(f"{address}/completions", wish)["choices"]
            if choice["finish_reason"] == "stop":
                continue  # the most probable token ends the text, and of it nothing is told
            (top,) = choice["logprobs"]["top_logprobs"]
            asked_for += 1
            said = top.get(tokenizer.decode(ids[place : place + 1]))
            if said is not None:
                apart.append(said - float(exported.log_probabilities[0][place - 1]))
            if asked_for == PREFIXES:
                break
    assert asked_for == PREFIXES
    assert len(apart) > 0.9 * PREFIXES, "the record's tokens are seldom among the server's most probable ones"
    assert float(np.abs(apart).mean()) <= SAME_TOKEN
    assert abs(float(np.mean(apart))) <= SAME_TEXT
