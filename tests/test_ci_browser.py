"""The script that sees to CI's browser, on machines that are made of stand-ins: with and without a browser, and with packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "browser"
TOOLS = ("bash", "cat", "chmod", "env", "grep", "id", "mktemp", "rm", "tail", "timeout", "true")
DRAWS = "#!/bin/bash\necho '<p id=\"here\">42</p>'\n"
DRAWS_NOTHING = "#!/bin/bash\necho '<p id=\"here\"></p>'\n"
SUDO = '#!/bin/bash\nshift\nexec "$@"\n'


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The folder of all programs: a few tools, nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def asked(machine: Path) -> tuple[int, str]:
    """Exit code and the one line."""
    environment = {"PATH": str(machine), "HOME": str(machine)}
    done = subprocess.run(
        [str(machine / "bash"), str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return done.returncode, line


def test_a_browser_that_draws_is_taken_and_nothing_is_installed(machine: Path) -> None:
    program(machine, "google-chrome", DRAWS)
    program(machine, "apt-get", f"#!/bin/bash\necho asked >>'{machine}/installed'\nexit 1\n")
    assert asked(machine) == (0, f"browser: {machine}/google-chrome")
    assert not (machine / "installed").exists()


def test_a_browser_that_draws_nothing_is_said_and_ends_nothing_but_its_tests(machine: Path) -> None:
    program(machine, "chromium", DRAWS_NOTHING)
    code, line = asked(machine)
    assert code == 1
    assert "draws no page within a minute; the tests that need one are skipped" in line


def test_without_packages_it_is_said_that_none_can_be_installed(machine: Path) -> None:
    assert asked(machine) == (1, "browser: none, and no apt-get to install one with; the tests that need one are skipped")


def test_debians_package_is_installed_and_tried(machine: Path) -> None:
    program(machine, "sudo", SUDO)
    program(machine, "browser-of-debian", DRAWS)
    made = machine / "chromium"
    install = f'[[ "$*" == *install*chromium ]] && cat "{machine}/browser-of-debian" >"{made}" && chmod +x "{made}"'
    program(machine, "apt-get", f"#!/bin/bash\n[[ $1 == update ]] && exit 100  # lists cannot be renewed\n{install}\n")
    assert asked(machine) == (0, f"browser: {machine}/chromium")


def test_packages_that_cannot_be_had_are_one_line_with_what_the_installer_said(machine: Path) -> None:
    program(machine, "sudo", SUDO)
    program(
        machine,
        "apt-get",
        "#!/bin/bash\necho 'Reading package lists...'\necho 'E: Unable to locate package chromium'\nexit 100\n",
    )
    code, line = asked(machine)
    assert code == 1
    assert "could not be installed (E: Unable to locate package chromium); the tests that need one are skipped" in line


def test_who_may_not_install_is_told_so(machine: Path) -> None:
    (machine / "id").unlink()
    program(machine, "id", "#!/bin/bash\necho 1000\n")
    program(machine, "sudo", "#!/bin/bash\nexit 1\n")
    program(machine, "apt-get", "#!/bin/bash\nexit 0\n")
    assert asked(machine) == (1, "browser: none, and this user may not install one; the tests that need one are skipped")
