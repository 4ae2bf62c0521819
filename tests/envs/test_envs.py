"""Environments of their own: built once, whoever asks; never half; never removed under somebody's feet; failures in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import envs
from harness.child import fork_server
from harness.errors import BadInput, UnknownName
from tests.envs.conftest import Installer

Make = Callable[..., envs.Environment]

BUILDER = """
import sys
from pathlib import Path
from harness import envs

say = lambda text: print(text, flush=True)
environment = envs.Environment(name="elsewhere", requirements=tuple(sys.argv[2:]), methods=("fake",))
try:
    with envs.obtain(environment, Path(sys.argv[1]), say) as ready:
        say("ready with " + " ".join(ready.packages))
except envs.BuildFailed as error:
    say("failed: " + str(error))
"""


def quiet(text: str) -> None:
    pass


def builder(cache: Path, environment: envs.Environment) -> subprocess.Popen[str]:
    """Another quant-harness that wants the environment."""
    command = [sys.executable, "-c", BUILDER, str(cache), *environment.requirements]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_worker_starts_in_an_interpreter_that_has_nothing_but_the_standard_library(tmp_path: Path) -> None:
    path = fork_server.harness_alone(tmp_path)
    assert [p.name for p in path.iterdir()] == ["harness"]
    code = f"import sys; sys.path.insert(0, {str(path)!r}); import harness.child.serve, harness.envs.health; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()} - {"__main__", "harness"}
    assert {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")} == set()


def test_methods_of_one_name_share_one_requirement_set() -> None:
    known = envs.environments()
    assert next(iter(known)) == envs.MAIN
    assert "fake-elsewhere" in known["elsewhere"].methods
    assert known["elsewhere"].requirements == ("six==1.16.0",)
    assert all(name in known[envs.MAIN].methods for name in ("bf16", "gptq", "fake"))


def test_environments_are_the_same_exactly_when_their_requirements_are(environment: Make) -> None:
    one = environment("a==1", "b==2")
    assert envs.Environment(name="other", requirements=one.requirements, methods=()).digest == one.digest
    assert environment("a==1", "b==3").digest != one.digest


def test_an_environment_is_built_once_and_found_ready_afterwards(tmp_path: Path, installer: Installer, environment: Make) -> None:
    said: list[str] = []
    assert envs.status(environment(), tmp_path).state == "not built"
    with envs.obtain(environment(), tmp_path, said.append) as ready:
        assert ready.packages == {"extra": "1.0", "thing": "1.0"}
        assert str(ready.python).startswith(str(tmp_path))
    assert any("uv installs thing==1.0" in line for line in said)
    stands = envs.status(environment(), tmp_path)
    assert stands.state == "ready"
    assert (envs.size_bytes(environment(), tmp_path) or 0) > 10_000
    again: list[str] = []
    envs.obtain(environment(), tmp_path, again.append).close()
    assert again == []
    assert installer.installs == 1


def test_two_who_want_the_same_environment_at_once_build_it_once(tmp_path: Path, installer: Installer, environment: Make) -> None:
    installer.wait()
    first = builder(tmp_path, environment())
    until(lambda: installer.installs == 1)
    second = builder(tmp_path, environment())
    assert second.stdout is not None
    assert second.stdout.readline().strip() == f"waiting for the environment: process {first.pid} is building it"
    assert f"process {first.pid} is building it" in envs.status(environment(), tmp_path).detail
    installer.go_on()
    for process in (first, second):
        out, _ = process.communicate(timeout=120)
        assert out.splitlines()[-1] == "ready with extra thing"
    assert installer.installs == 1


def test_who_waited_for_a_build_that_failed_does_not_repeat_it(tmp_path: Path, installer: Installer, environment: Make) -> None:
    installer.wait()
    first = builder(tmp_path, environment("thing==0.0.0"))
    until(lambda: installer.installs == 1)
    second = builder(tmp_path, environment("thing==0.0.0"))
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    installer.go_on()
    for process in (first, second):
        out, _ = process.communicate(timeout=120)
        assert "failed: the environment 'elsewhere' (thing==0.0.0) could not be built" in out.splitlines()[-1]
    assert installer.installs == 1


def test_a_build_that_was_killed_is_not_used_and_is_built_anew_once_its_installer_is_gone(
    tmp_path: Path, installer: Installer, environment: Make
) -> None:
    installer.wait()
    killed = builder(tmp_path, environment())
    until(lambda: installer.installs == 1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=30)
    assert "the installer of a build that was killed is still at work" in envs.status(environment(), tmp_path).detail
    second = builder(tmp_path, environment())
    assert second.stdout is not None
    assert "the installer of a build that was killed is still at work" in second.stdout.readline()
    assert installer.installs == 1  # nobody else writes while the orphan does
    installer.go_on()
    out, _ = second.communicate(timeout=120)
    assert out.splitlines()[-1] == "ready with extra thing"
    assert installer.installs == 2  # what the orphan left was not trusted


def test_a_folder_without_its_marker_is_broken_and_says_so(tmp_path: Path, installer: Installer, environment: Make) -> None:
    envs.obtain(environment(), tmp_path, quiet).close()
    next(tmp_path.glob("environments/*/ready.json")).unlink()
    stands = envs.status(environment(), tmp_path)
    assert stands.state == "broken"
    assert "interrupted" in stands.detail
    envs.obtain(environment(), tmp_path, quiet).close()
    assert installer.installs == 2


def test_an_environment_whose_python_is_gone_is_built_anew(tmp_path: Path, installer: Installer, environment: Make) -> None:
    with envs.obtain(environment(), tmp_path, quiet) as ready:
        python = ready.python
    python.unlink()
    python.symlink_to(tmp_path / "nowhere")
    assert envs.status(environment(), tmp_path).state == "broken"
    envs.obtain(environment(), tmp_path, quiet).close()
    assert installer.installs == 2


def test_a_failed_build_says_why_without_addresses_and_folders_and_is_tried_again(
    tmp_path: Path, installer: Installer, environment: Make
) -> None:
    with pytest.raises(envs.BuildFailed) as caught:
        envs.obtain(environment("thing==0.0.0"), tmp_path, quiet)
    message, tail = str(caught.value), caught.value.log_tail
    assert "error: no version of thing is 0.0.0" in message
    assert "quant-harness env build elsewhere" in message
    for text in (message, tail):
        assert "secret" not in text
        assert str(tmp_path) not in text
        assert sys.executable not in text
    assert "(address)" in tail
    assert "secret" in caught.value.log.read_text()  # the log itself is whole
    stands = envs.status(environment("thing==0.0.0"), tmp_path)
    assert (stands.state, stands.detail) == ("broken", message)
    with pytest.raises(envs.BuildFailed):
        envs.obtain(environment("thing==0.0.0"), tmp_path, quiet)
    assert installer.installs == 2


def test_an_environment_in_use_is_not_removed(tmp_path: Path, installer: Installer, environment: Make) -> None:
    with envs.obtain(environment(), tmp_path, quiet), pytest.raises(BadInput, match="in use: another quant-harness is using it"):
        envs.remove(environment(), tmp_path)
    assert envs.status(environment(), tmp_path).state == "ready"
    assert envs.remove(environment(), tmp_path) > 0
    assert envs.status(environment(), tmp_path).state == "not built"
    with pytest.raises(BadInput, match="nothing to remove"):
        envs.remove(environment(), tmp_path)


def test_environments_that_no_method_needs_any_more_are_found_and_removed(
    tmp_path: Path, installer: Installer, environment: Make
) -> None:
    envs.obtain(environment(), tmp_path, quiet).close()
    envs.obtain(envs.find("elsewhere"), tmp_path, quiet).close()
    assert list(envs.unused(tmp_path)) == [environment().digest]
    assert envs.remove_unused(tmp_path) > 0
    assert envs.unused(tmp_path) == {}
    assert envs.status(envs.find("elsewhere"), tmp_path).state == "ready"


def test_a_check_finds_packages_that_differ_from_the_lock_and_methods_that_no_longer_work(
    tmp_path: Path, installer: Installer
) -> None:
    elsewhere = envs.find("elsewhere")
    with pytest.raises(BadInput, match="not built; build it: quant-harness env build elsewhere"):
        envs.check(elsewhere, tmp_path, quiet)
    with envs.obtain(elsewhere, tmp_path, quiet) as ready:
        site = next(ready.python.parents[1].glob("lib/python*/site-packages"))
    assert envs.check(elsewhere, tmp_path, quiet) == []
    (site / "six.py").write_text("__version__ = '1.15.0'")
    (site / "six-1.16.0.dist-info").rename(site / "six-1.15.0.dist-info")
    (site / "six-1.15.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: six\nVersion: 1.15.0")
    changed, unwell = envs.check(elsewhere, tmp_path, quiet)
    assert changed == "six is 1.15.0, locked at 1.16.0"
    assert "six is 1.15.0, not 1.16.0" in unwell
    assert envs.status(elsewhere, tmp_path).state == "broken"


def test_a_method_is_tried_once_per_environment_and_not_at_every_use(tmp_path: Path, installer: Installer) -> None:
    said: list[str] = []
    for _ in range(2):
        with envs.obtain(envs.find("elsewhere"), tmp_path, quiet) as ready:
            assert ready.unwell("fake-elsewhere", said.append) is None
    assert len(said) == 1


def test_names_that_no_method_gives_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'elsewhere'"):
        envs.find("elswhere")
    with pytest.raises(BadInput, match="neither built nor removed here"):
        envs.own(envs.MAIN)


def test_an_installer_that_is_not_there_is_said_before_anything_is_touched(
    tmp_path: Path, environment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANT_HARNESS_INSTALLER", "conda")
    with pytest.raises(BadInput, match="write uv or pip"):
        envs.obtain(environment(), tmp_path, quiet)
    monkeypatch.setenv("QUANT_HARNESS_INSTALLER", "uv")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="no uv on PATH"):
        envs.obtain(environment(), tmp_path, quiet)
    assert not list(tmp_path.glob("environments/[0-9a-f]*"))
