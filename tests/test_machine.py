"""Facts of the machine, from real and from written-out kernel files."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.measure import bandwidth, conditions, machine, nvidia
from harness.spec import canonical

MIB = 2**20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_facts_are_plain_data_and_hold_no_name_of_this_host() -> None:
    facts = machine.facts()
    text = canonical(facts).decode()
    node = os.uname().nodename
    assert (facts.cores or 0) >= (facts.cores_usable or 0) >= 1
    assert (facts.memory_bytes or 0) > 64 * MIB
    assert facts.python
    assert len(node) < 4 or node not in text
    assert str(Path.home()) not in text or str(Path.home()) == "/"


def test_instruction_sets_and_caches_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    proc = write(
        tmp_path / "proc",
        {
            "cpuinfo": "vendor_id\t: SomeMaker\nmodel name\t: Some CPU\nmodel\t: 207\ncpu family\t: 6\nstepping\t: 2\n"
            "flags\t\t: fpu avx2 amx_int8 hypervisor\ncpu MHz\t\t: 2000.0\ncpu MHz\t\t: 3000.0\n",
            "meminfo": "MemTotal:  1024 kB\n",
        },
    )
    sys_root = write(
        tmp_path / "sys",
        {
            "devices/system/cpu/cpu0/cache/index0/level": "1\n",
            "devices/system/cpu/cpu0/cache/index0/type": "Instruction\n",
            "devices/system/cpu/cpu0/cache/index0/size": "32K\n",
            "devices/system/cpu/cpu0/cache/index3/level": "3\n",
            "devices/system/cpu/cpu0/cache/index3/type": "Unified\n",
            "devices/system/cpu/cpu0/cache/index3/size": "260M\n",
            "devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        },
    )
    facts = machine.facts(proc=proc, sys_root=sys_root)
    assert facts.cpu == "Some CPU (family 6 model 207 stepping 2)"
    assert facts.cpu_flags == ("avx2", "amx_int8")
    assert facts.virtualized is True
    assert machine.cpu_vendor(proc) == "SomeMaker"
    assert facts.cache_bytes == {"L3": 260 * MIB}
    assert facts.memory_bytes == MIB
    assert facts.governor == "powersave"
    assert conditions.snapshot(proc=proc).megahertz == 2500.0


def test_a_machine_without_any_of_the_files_still_has_facts(tmp_path: Path) -> None:
    facts = machine.facts(proc=tmp_path, sys_root=tmp_path)
    assert facts.cache_bytes == {}
    assert facts.governor is None
    between = conditions.between(conditions.snapshot(proc=tmp_path), conditions.snapshot(proc=tmp_path))
    assert set(asdict(between).values()) == {None}


def test_the_host_id_is_the_make_of_the_machine_and_not_which_one_it_is() -> None:
    gpu = nvidia.Gpu(name="H200", memory_bytes=None, driver="1")
    one = replace(machine.facts(), cpu="A", cores=2, memory_bytes=8 * 2**30 + 5, gpus=(gpu,))
    assert machine.host_id(one) == machine.host_id(replace(one, memory_bytes=8 * 2**30 - 99, kernel="7"))
    assert machine.host_id(one) == machine.host_id(replace(one, gpus=(replace(gpu, driver="2"),)))
    assert machine.host_id(one) != machine.host_id(replace(one, cores=4))
    assert machine.host_id(one) != machine.host_id(replace(one, gpus=()))
    assert machine.host_id() == machine.host_id()


def test_installed_packages_have_versions_and_a_digest_that_notices_a_change() -> None:
    found = machine.packages()
    assert found["pytest"] == pytest.__version__
    assert machine.packages_digest() == machine.packages_digest(found)
    assert machine.packages_digest(found) != machine.packages_digest({**found, "pytest": "0"})


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false", "-c", "core.hooksPath="]
    return subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True).stdout


def test_the_commit_says_when_tracked_files_differ(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "results.jsonl").write_text("new and not tracked")
    assert machine.commit(tmp_path) == head
    (tmp_path / "a.py").write_text("2")
    assert machine.commit(tmp_path) == head + "-dirty"
    assert machine.commit(tmp_path / "a.py") == head + "-dirty"


def test_there_is_no_commit_outside_a_repository_nor_for_a_package_that_is_only_installed_inside_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "own.py").write_text("1")
    git(tmp_path, "add", "own.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    installed = tmp_path / ".venv/site-packages/harness"
    installed.mkdir(parents=True)
    (installed / "x.py").write_text("1")
    assert machine.commit(tmp_path) is not None
    assert machine.commit(installed) is None


def test_without_git_and_without_a_driver_nothing_breaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit(Path(machine.__file__)) is None
    assert nvidia.gpus() == ()
    assert nvidia.own_bytes() is None


def test_gpus_are_read_from_the_drivers_own_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 570.1'\necho 'Odd [N/A], [N/A], 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    first, second = nvidia.gpus()
    assert first == nvidia.Gpu(name="NVIDIA H200", memory_bytes=143771 * MIB, driver="570.1")
    assert second.memory_bytes is None


def test_what_this_process_holds_is_added_up_over_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    own = os.getpid()
    tool.write_text(f"#!/bin/sh\necho '{own}, 300'\necho '{own + 1}, 5000'\necho '{own}, 20'\necho '{own}, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert nvidia.own_bytes() == 320 * MIB


MEMINFO = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"


def test_available_memory_is_the_systems_where_no_group_limits_it(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"meminfo": MEMINFO, "self/cgroup": "0::/a\n"})
    groups = write(tmp_path / "groups", {"a/memory.max": "max\n", "a/memory.current": "5\n"})
    assert machine.available_memory_bytes(proc=proc, cgroup=groups) == 4096 * MIB


def test_available_memory_respects_every_group_of_version_two_on_the_way_up(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"meminfo": MEMINFO, "self/cgroup": "0::/outer/inner\n"})
    groups = write(
        tmp_path / "groups",
        {
            "outer/memory.max": str(1000 * MIB),
            "outer/memory.current": str(900 * MIB),
            "outer/memory.stat": f"anon 1\ninactive_file {50 * MIB}\n",
            "outer/inner/memory.max": str(2000 * MIB),
            "outer/inner/memory.current": str(100 * MIB),
        },
    )
    assert machine.available_memory_bytes(proc=proc, cgroup=groups) == 150 * MIB


def test_available_memory_respects_version_one_seen_from_inside_a_container(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"meminfo": MEMINFO, "self/cgroup": "3:cpu:/x\n4:memory:/docker/1234\n"})
    limits = {"memory/memory.limit_in_bytes": str(300 * MIB), "memory/memory.usage_in_bytes": str(100 * MIB)}
    assert machine.available_memory_bytes(proc=proc, cgroup=write(tmp_path / "one", limits)) == 200 * MIB
    none = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"}
    assert machine.available_memory_bytes(proc=proc, cgroup=write(tmp_path / "two", none)) == 4096 * MIB


def test_available_memory_is_unknown_where_nobody_counts_it(tmp_path: Path) -> None:
    assert machine.available_memory_bytes(proc=tmp_path, cgroup=tmp_path) is None


def test_free_disk_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    there = machine.free_disk_bytes(tmp_path)
    assert there > 0
    assert machine.free_disk_bytes(tmp_path / "not" / "yet") > 0


def test_steal_and_the_cpu_time_of_others_are_shares_of_all_cpus() -> None:
    before = conditions.Snapshot(
        load=0.5, machine=conditions.CpuSeconds(total=100.0, busy=10.0, steal=1.0), own=2.0, megahertz=None
    )
    after = conditions.Snapshot(
        load=1.5, machine=conditions.CpuSeconds(total=120.0, busy=22.0, steal=2.0), own=12.0, megahertz=3000.0
    )
    found = conditions.between(before, after)
    assert found.steal_share == pytest.approx(1 / 20)
    assert found.others_cpu_share == pytest.approx((12 - 10) / 20)
    assert (found.load_before, found.load_after) == (0.5, 1.5)


def test_bandwidth_is_positive_and_names_its_kernel() -> None:
    pytest.importorskip("torch")
    found = bandwidth.bandwidth(4 * MIB, seconds=0.02)
    assert found.bytes_per_second == max(found.by_kernel.values()) > 0
    assert found.by_kernel[found.kernel] == found.bytes_per_second
    assert set(found.by_kernel) == {"read", "gemv", "copy", "triad"}


def test_bandwidth_is_kept_for_the_next_time_unless_others_were_using_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    still = conditions.between(conditions.snapshot(), conditions.snapshot())
    monkeypatch.setattr(bandwidth, "between", lambda before, after: replace(still, others_cpu_share=0.5))
    bandwidth.bandwidth(4 * MIB, seconds=0.02, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(bandwidth, "between", lambda before, after: replace(still, others_cpu_share=0.0))
    first = bandwidth.bandwidth(4 * MIB, seconds=0.02, cache=tmp_path)
    near = bandwidth.bandwidth(4 * MIB + 4096, seconds=0.02, cache=tmp_path)
    assert first == near  # two measurements are never equal to the last bit: this one was read back
    (kept,) = tmp_path.iterdir()
    kept.write_text("{torn")
    assert bandwidth.bandwidth(4 * MIB, seconds=0.02, cache=tmp_path).by_kernel.keys() == first.by_kernel.keys()


def test_a_working_set_inside_the_last_cache_is_not_called_memory() -> None:
    pytest.importorskip("torch")
    last = machine.caches().get("L3")
    if last is None:
        pytest.skip("this machine names no last-level cache")
    assert bandwidth.bandwidth(last // 8, seconds=0.01).level == "cache"
