"""Peak memory by phase: the kernel's counters against allocations of known size."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harness.errors import Unsupported
from harness.measure.memory_phases import Meter, mapped, measure, populate, release, require, reset_peak, resident
from harness.spec import Phase

MIB = 2**20
linux = pytest.mark.skipif(resident() is None, reason="the kernel's counters are Linux's")


def phase(meter: Meter) -> Phase:
    assert meter.phase is not None
    return meter.phase


def peak_beyond_start(meter: Meter) -> int:
    peaks = phase(meter).peak_bytes
    return peaks["host_peak"] - peaks["host_start"]


def touch(size: int) -> mmap.mmap:
    """An anonymous mapping of `size` bytes with every page written; closing it gives all of them back to the kernel."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, mmap.PAGESIZE):
        block[offset] = 1
    return block


@linux
def test_a_known_allocation_is_the_peak_to_within_four_mebibytes() -> None:
    with measure("work") as meter:
        block = np.ones(64 * MIB, dtype=np.uint8)
    assert block[-1] == 1
    assert abs(peak_beyond_start(meter) - 64 * MIB) < 4 * MIB
    assert phase(meter).peak_bytes["host_anonymous"] >= phase(meter).peak_bytes["host_anonymous_at_least"] >= 64 * MIB


@linux
def test_a_known_torch_tensor_is_the_peak_to_within_four_mebibytes() -> None:
    torch = pytest.importorskip("torch")
    torch.ones(16).sum()  # the runtime's own first use is not the tensor's
    with measure("work") as meter:
        tensor = torch.ones(16 * MIB, dtype=torch.float32)
    assert tensor.numel() == 16 * MIB
    assert abs(peak_beyond_start(meter) - 64 * MIB) < 4 * MIB


@linux
def test_a_spike_of_fifty_milliseconds_that_is_freed_within_the_phase_is_always_seen() -> None:
    for _ in range(10):
        with measure("spike") as meter:
            block = touch(256 * MIB)
            time.sleep(0.05)
            block.close()
        assert abs(peak_beyond_start(meter) - 256 * MIB) < 4 * MIB
        assert phase(meter).peak_bytes["host_end"] - phase(meter).peak_bytes["host_start"] < 4 * MIB


@linux
def test_the_peak_of_one_phase_does_not_reach_into_the_next() -> None:
    with measure("first"):
        touch(128 * MIB).close()
    with measure("second") as second:
        touch(16 * MIB).close()
    assert abs(peak_beyond_start(second) - 16 * MIB) < 4 * MIB


@linux
def test_an_outer_phase_has_seen_what_its_inner_phases_saw() -> None:
    with measure("outer") as outer:
        touch(128 * MIB).close()
        with measure("inner") as inner:
            touch(32 * MIB).close()
        touch(16 * MIB).close()
    assert abs(peak_beyond_start(outer) - 128 * MIB) < 4 * MIB
    assert abs(peak_beyond_start(inner) - 32 * MIB) < 4 * MIB


@linux
def test_a_phase_that_raises_is_still_measured() -> None:
    meters = []

    def broken() -> None:
        with measure("broken") as meter:
            meters.append(meter)
            touch(64 * MIB).close()
            raise MemoryError

    with pytest.raises(MemoryError):
        broken()
    (meter,) = meters
    assert abs(peak_beyond_start(meter) - 64 * MIB) < 4 * MIB


@linux
def test_mapped_and_read_weights_have_the_same_peak(tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    np.arange(64 * MIB // 4, dtype=np.uint32).tofile(weights)
    with measure("mapped") as by_map:
        array = np.memmap(weights, dtype=np.uint32, mode="r")
        first = int(array.max())
        pages = mapped([tmp_path])
        del array
    with measure("read") as by_read:
        read = np.fromfile(weights, dtype=np.uint32)
        second = int(read.max())
    assert first == second
    assert abs(peak_beyond_start(by_map) - peak_beyond_start(by_read)) <= 0.03 * 64 * MIB
    assert pages is not None
    assert pages.weights == 64 * MIB


@linux
def test_a_file_mapped_twice_is_counted_once(tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (tmp_path / "blob").write_bytes(bytes(8 * MIB))
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    before = mapped([folder])
    one = np.memmap(folder / "model.safetensors", dtype=np.uint8, mode="r")
    two = np.memmap(folder / "model.safetensors", dtype=np.uint8, mode="r")
    assert int(one.max()) == int(two.max()) == 0
    pages = mapped([folder])
    assert before is not None
    assert pages is not None
    assert before.weights == 0
    assert pages.weights == 8 * MIB
    assert pages.doubled - before.doubled == 8 * MIB


@linux
def test_released_pages_of_a_file_come_back_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    np.arange(8 * MIB // 4, dtype=np.uint32).tofile(path)
    array = np.memmap(path, dtype=np.uint32, mode="r")
    total = int(array.sum(dtype=np.uint64))
    assert release([tmp_path]) == 8 * MIB
    gone = mapped([tmp_path])
    assert gone is not None
    assert gone.weights == 0
    assert int(array.sum(dtype=np.uint64)) == total
    back = mapped([tmp_path])
    assert back is not None
    assert back.weights == 8 * MIB


@linux
def test_populating_a_mapping_is_as_good_as_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(8 * MIB))
    array = np.memmap(path, dtype=np.uint8, mode="r")
    if not populate([tmp_path]):
        pytest.skip("this kernel cannot populate a mapping")
    pages = mapped([tmp_path])
    assert pages is not None
    assert pages.weights == 8 * MIB == array.size


@linux
def test_pages_that_were_written_are_never_released(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(8 * MIB))
    array = np.memmap(path, dtype=np.uint8, mode="c")  # private: what is written is in memory only
    assert int(array.max()) == 0
    array[MIB] = 7
    assert release([tmp_path]) == 0
    assert array[MIB] == 7


STATUS = "Name:\tx\nVmHWM:\t  {peak} kB\nRssAnon:\t  {anonymous} kB\nRssFile:\t  {file} kB\nRssShmem:\t  0 kB\n"


def fake_proc(folder: Path, **kilobytes: int) -> Path:
    (folder / "status").write_text(STATUS.format(**kilobytes))
    return folder


def test_without_permission_an_old_peak_is_called_a_bound_and_not_a_measurement(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, peak=900, anonymous=100, file=50)
    (proc / "clear_refs").mkdir()  # cannot be written, whoever runs this
    assert not reset_peak(proc)
    with measure("quiet", proc=proc) as quiet:
        pass
    with measure("loud", proc=proc) as loud:
        fake_proc(tmp_path, peak=1000, anonymous=120, file=60)
    assert phase(quiet).peak_bytes["host_peak_at_most"] == 900 * 1024
    assert "host_peak" not in phase(quiet).peak_bytes
    assert phase(loud).peak_bytes["host_peak"] == 1000 * 1024  # the mark rose within the phase, so it is the phase's own


def test_the_split_into_anonymous_and_file_pages_is_a_bound_from_both_sides(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, peak=150, anonymous=100, file=50)
    with measure("load", proc=proc) as meter:
        fake_proc(tmp_path, peak=1000, anonymous=300, file=250)
    peaks = phase(meter).peak_bytes
    assert peaks["host_anonymous"] == (1000 - 50) * 1024
    assert peaks["host_anonymous_at_least"] == 300 * 1024
    assert peaks["host_file"] == 250 * 1024


def test_a_system_without_the_kernels_counters_is_unsupported_and_says_so(tmp_path: Path) -> None:
    assert resident(tmp_path) is None
    assert resident(tmp_path) is None
    with pytest.raises(Unsupported, match="Linux"):
        require(tmp_path)
    with measure("anything", proc=tmp_path, clock=iter([1.0, 3.5]).__next__) as meter:
        pass
    assert phase(meter).seconds == 2.5
    assert phase(meter).peak_bytes == {}


class FakeCuda:
    def __init__(self) -> None:
        self.peak = 700

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def synchronize(self) -> None:
        pass

    def reset_peak_memory_stats(self, index: int) -> None:
        self.peak = 10

    def max_memory_allocated(self, index: int) -> int:
        return self.peak

    def max_memory_reserved(self, index: int) -> int:
        return self.peak + 1


def test_device_peaks_are_the_allocators_since_the_phase_began(monkeypatch: pytest.MonkeyPatch) -> None:
    class Torch:
        cuda = FakeCuda()

    monkeypatch.setitem(sys.modules, "torch", Torch)
    with measure("prefill") as meter:
        Torch.cuda.peak = 50
    assert phase(meter).peak_bytes["device_allocated"] == 100
    assert phase(meter).peak_bytes["device_reserved"] == 102
