"""vLLM's own OpenAI-compatible server over one artifact: started on this machine, waited for, asked, and stopped.

It is started as `python -m vllm.entrypoints.openai.api_server` with the same settings as the engine in this process, in processes
of its own that end with this one (`kept_server.py`). What it says goes where this process's own output goes.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.errors import ServerTrouble
from harness.runtimes.kept_server import KeptServer
from harness.runtimes.vllm import SERVER_SETTINGS, SETTINGS, rounding

NAME = "artifact"
"""What the server calls the model."""

START_SECONDS = 900.0
"""What a server has until it answers."""


@contextmanager
def serving(folder: Path, tokenizer: Path, settings: Mapping[str, object], *, w4a8: bool) -> Iterator[str]:
    """Inside, a server of the artifact in `folder` answers at the address given, up to /v1. `settings` by the names of vLLM's
    engine arguments. ServerTrouble where it ends or does not answer in time."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--tokenizer", str(tokenizer)]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    laid: dict[str, str | None] = {**dict.fromkeys(SETTINGS), **SERVER_SETTINGS, **rounding(w4a8=w4a8)}
    server = KeptServer(
        [*command, *options(settings)],
        path=Path(__file__).parents[2],
        log=Path(f"/proc/{os.getpid()}/fd/1"),
        env=laid,
        secrets=(),
    )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.stop()


def options(settings: Mapping[str, object]) -> list[str]:
    """Settings as options of the command line; one that is off is left out."""
    said: list[str] = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        said += [] if value is False else [option] if value is True else [option, str(value)]
    return said


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _wait(server: KeptServer, address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.code() is not None:
            raise ServerTrouble("vLLM's server ended before it answered; the end of the log says why", "crash")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    raise ServerTrouble(f"vLLM's server has not answered after {START_SECONDS:g} s", "timeout")
