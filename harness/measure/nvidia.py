"""NVIDIA GPUs as the driver's own tool reports them, without torch: which there are, and what a process holds on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

SECONDS = 20
"""A driver that answers no sooner is taken for one that does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; `memory_bytes` is None where the driver does not say (MIG)."""

    name: str
    memory_bytes: int | None
    driver: str


def gpus() -> tuple[Gpu, ...]:
    """Every GPU of this machine. Empty where there are none."""
    rows = _ask("gpu", "name", "memory.total", "driver_version")
    return tuple(Gpu(name=name, memory_bytes=_mebibytes(memory), driver=driver) for name, memory, driver in rows)


def own_bytes() -> int | None:
    """What this process holds on all GPUs as the driver counts it, context and reserved pool included; None if it is silent."""
    rows = _ask("compute-apps", "pid", "used_memory")
    own = [held for pid, memory in rows if pid == str(os.getpid()) and (held := _mebibytes(memory)) is not None]
    return sum(own) if own else None


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdigit() else None


def _ask(what: str, *fields: str) -> list[list[str]]:
    """The rows of `nvidia-smi --query-...`, each with as many values as `fields`; none without the tool or a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == len(fields)]
