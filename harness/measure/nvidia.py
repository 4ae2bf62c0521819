"""NVIDIA GPUs as the driver's own tool reports them, without torch: which there are, and what a process holds on them. The energy
of a board, which the tool does not tell, comes from the driver's library (NVML), read through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


class NoCounter(Exception):
    """A GPU's energy cannot be read; says why."""


def energy_counter(index: int) -> Callable[[], int]:
    """Reads what the board of the `index`-th CUDA device has taken since its driver was loaded, in millijoules (NVML's
    nvmlDeviceGetTotalEnergyConsumption, Volta and newer). The device is found by its UUID: NVML counts the boards in another
    order than CUDA does. NoCounter, here or from the reader, where there is none."""
    torch = sys.modules.get("torch")
    if torch is None:
        raise NoCounter("which of the GPUs computes is known to torch, which this process has not loaded")
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise NoCounter(f"the driver's library NVML cannot be loaded ({error}); it comes with the NVIDIA driver") from None
    return _total_energy(library, f"GPU-{torch.cuda.get_device_properties(index).uuid}")


def _total_energy(library: Any, uuid: str) -> Callable[[], int]:
    """The reader of one board, by the library's functions."""
    device = ctypes.c_void_p()
    _nvml(library, library.nvmlInit_v2(), "nvmlInit")
    _nvml(library, library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)), f"the board {uuid}")

    def read() -> int:
        counted = ctypes.c_ulonglong()
        _nvml(library, library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(counted)), "total energy")
        return counted.value

    read()  # a board without the counter (MIG, before Volta) says so now
    return read


def _nvml(library: Any, code: int, what: str) -> None:
    if code != 0:
        library.nvmlErrorString.restype = ctypes.c_char_p
        said = (library.nvmlErrorString(code) or b"").decode("utf-8", errors="replace")
        raise NoCounter(
            f"NVML gives no energy of this GPU ({what}: {said or code}); boards since Volta have the counter, MIG slices not"
        )
