"""Memory bandwidth, measured: what the roofline of decoding stands on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.files import write_atomically
from harness.measure.conditions import between, snapshot
from harness.measure.machine import caches, host_id
from harness.spec import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Memory bandwidth at one working-set size. `level` is `memory` if the set is at least twice the last cache, else `cache`;
    `others_cpu_share` is what others took of all CPU time meanwhile: much of it makes this too low."""

    bytes_per_second: float
    working_set_bytes: int
    kernel: str
    by_kernel: Mapping[str, float]
    level: str
    threads: int
    others_cpu_share: float | None


def bandwidth(working_set_bytes: int, *, device: str = "cpu", seconds: float = 0.12, cache: Path | None = None) -> Bandwidth:
    """Sustained memory bandwidth over a working set of that many bytes, with the threads this process computes with.

    As in STREAM (McCalpin 1995): bytes moved as the program names them over the *best* time of many passes, for `read` (a sum),
    `gemv` (matrix times vector: what decoding does), `copy` and `triad` (a = b + s c); the fastest of the four counts, because
    it stands for a floor on time. At most 1 GiB is taken (or four times the last cache, if that is more): beyond that it is
    the same memory. Sizes are rounded to a quarter of an octave, so that near ones share an answer. `cache`: folder where the
    answer is kept per machine, size and thread count, unless others were using the machine. Raises ImportError without torch
    and numpy.
    """
    last_level = max(caches().values(), default=32 * 2**20)
    size = max(2**16, min(working_set_bytes, max(2**30, 4 * last_level)))
    size = round(2 ** (round(4 * math.log2(size)) / 4))
    level = "memory" if device != "cpu" or size >= 2 * last_level else "cache"
    kernels, threads, name = _stream_kernels(size, device)
    kept = None
    if cache is not None:
        key = digest({"host": host_id(), "size": size, "device": name, "threads": threads, "kernels": sorted(kernels)})
        kept = cache / f"bandwidth-{key[:16]}.json"
        known = _kept(kept)
        if known is not None:
            return known
    before = snapshot()
    by_kernel = {kernel: moved / _best(run, seconds / len(kernels)) for kernel, (moved, run) in kernels.items()}
    best = max(by_kernel, key=lambda kernel: by_kernel[kernel])
    measured = Bandwidth(
        bytes_per_second=by_kernel[best],
        working_set_bytes=size,
        kernel=best,
        by_kernel=by_kernel,
        level=level,
        threads=threads,
        others_cpu_share=between(before, snapshot()).others_cpu_share,
    )
    if kept is not None and (measured.others_cpu_share or 0.0) < 0.1:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(asdict(measured)))
    return measured


def _kept(path: Path) -> Bandwidth | None:
    try:
        return Bandwidth(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # missing, torn or of another version: measured again
        return None


def _best(run: Callable[[], None], seconds: float) -> float:
    run()  # first touch and thread start are not bandwidth
    best = float("inf")
    passes = 0
    end = time.perf_counter() + seconds
    while passes < 3 or time.perf_counter() < end:
        began = time.perf_counter_ns()
        run()
        best = min(best, (time.perf_counter_ns() - began) / 1e9)
        passes += 1
    return best


def _stream_kernels(size: int, device: str) -> tuple[dict[str, tuple[int, Callable[[], None]]], int, str]:
    """Kernel -> (bytes moved per pass, one pass), threads, name of the device. numpy where there is no torch."""
    try:
        import torch
    except ImportError:
        return _numpy_kernels(size)
    rows = max(1, size // 4 // 1024)
    matrix = torch.ones(rows, 1024, dtype=torch.float32, device=device)
    vector = torch.ones(1024, dtype=torch.float32, device=device)
    product = torch.empty(rows, dtype=torch.float32, device=device)
    third = max(1, size // 4 // 3)
    a, b, c = (torch.ones(third, dtype=torch.float32, device=device) for _ in range(3))
    cuda = str(device).startswith("cuda")

    def done() -> None:
        if cuda:
            torch.cuda.synchronize()

    def read() -> None:
        matrix.sum()
        done()

    def gemv() -> None:
        torch.mv(matrix, vector, out=product)
        done()

    def copy() -> None:
        a.copy_(b)
        done()

    def triad() -> None:
        torch.add(b, c, alpha=3.0, out=a)
        done()

    whole = rows * 1024 * 4
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    moved = {"read": (whole, read), "gemv": (whole, gemv), "copy": (2 * third * 4, copy), "triad": (3 * third * 4, triad)}
    return moved, int(torch.get_num_threads()), name


def _numpy_kernels(size: int) -> tuple[dict[str, tuple[int, Callable[[], None]]], int, str]:
    import numpy

    whole = numpy.ones(max(1, size // 4), dtype=numpy.float32)
    third = max(1, size // 4 // 3)
    a, b = numpy.ones(third, dtype=numpy.float32), numpy.ones(third, dtype=numpy.float32)

    def read() -> None:
        whole.max()

    def copy() -> None:
        numpy.copyto(a, b)

    return {"read": (whole.nbytes, read), "copy": (2 * third * 4, copy)}, 1, "cpu"
