"""A suite's command that starts a server: split without a shell, filled in word by word, refused in words where it is none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.errors import BadInput, UnknownName
from harness.methods import _serve_command
from harness.run import own_servers
from harness.spec import Served
from harness.suite.matrix import plan
from harness.suite.plan import Plan
from tests import tiny_folder

VALUES = {"port": "8123", "host": "127.0.0.1", "model": "/m", "artifact": "/a b/x.gguf", "name": "mine", "threads": "2"}


def test_a_command_is_split_as_a_shell_would_and_filled_in_without_one() -> None:
    command = "llama-server -m {artifact} --port={port} --alias '{name} {name}' --json '{\"a\": 1}'"
    assert _serve_command.wrong(command, artifact="gguf 4-bit Q4_K_M", token_env="") is None
    assert _serve_command.filled(command, VALUES) == [
        "llama-server",
        "-m",
        "/a b/x.gguf",
        "--port=8123",
        "--alias",
        "mine mine",
        "--json",
        '{"a": 1}',
    ]


@pytest.mark.parametrize("hostile", ["x --admin --key y", "x; rm -rf /", "$(id)", "'", '"', "{port}", "a b"])
def test_no_value_can_add_an_argument(hostile: str) -> None:
    words = _serve_command.filled("serve -m {artifact} --name={name} end", {**VALUES, "artifact": hostile, "name": hostile})
    assert words == ["serve", "-m", hostile, f"--name={hostile}", "end"]


@pytest.mark.parametrize("hostile", ["a\nb", "a\x00b", "a\u2028b --x", "\x1b[2J"])
def test_a_value_with_control_characters_is_refused(hostile: str) -> None:
    with pytest.raises(BadInput, match="control characters"):
        _serve_command.filled("serve -m {artifact}", {**VALUES, "artifact": hostile})


@pytest.mark.parametrize("value", ["--admin", "-x"])
def test_a_value_that_would_be_an_option_is_refused_where_it_would_be_one(value: str) -> None:
    with pytest.raises(BadInput, match="would be an option"):
        _serve_command.filled("serve --alias {name}", {**VALUES, "name": value})
    assert _serve_command.filled("serve --alias={name}", {**VALUES, "name": value}) == ["serve", f"--alias={value}"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("serve 'a", "close the quotes"),
        ("   ", "write the command"),
        ("serve \x1b[2J", "write the command"),
        ("KEY=1 serve", "env NAME=VALUE PROGRAM"),
        ("{model} serve", "it begins with the program"),
        ("serve && rm x", "'&&' means something to a shell only"),
        ("serve > log", "'>' means something to a shell only"),
        ("serve -m $HOME/x", "means something to a shell only"),
        ("serve -m ~/x", "means something to a shell only"),
        ("serve `id`", "means something to a shell only"),
        ("serve --port {prot}", "{prot} stands for nothing; it takes {port}"),
        ("serve -m {artifact}", "name it by its label: artifact: 'gguf 4-bit Q4_K_M'"),
        ("docker run x", "what docker starts could not be ended with the run"),
        ("env A=1 /usr/bin/sudo serve", "what sudo starts could not be ended with the run"),
        ("serve --api-key sk-1", "leave secrets out of it"),
        ("serve --hf-token=x", "leave secrets out of it"),
    ],
)
def test_what_is_no_command_is_refused_in_words(command: str, said: str) -> None:
    assert said in str(_serve_command.wrong(command, artifact="", token_env=""))


def test_a_token_in_the_command_is_refused_and_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "swordfish-1234")
    said = _serve_command.wrong("serve --header swordfish-1234", artifact="", token_env="MY_TOKEN")
    assert said is not None
    assert "leave secrets out of it" in said
    assert "swordfish" not in said


# ---- in a suite ----


def planned(tmp_path: Path, **options: object) -> Plan:
    tiny_folder.write(tmp_path / "tiny", hidden=128)
    server = {"url": "http://127.0.0.1:8123/v1", "model": "m", "name": "served", **options}
    methods = {"bf16": None, "rtn": {"bits": [8, 4], "group_size": 64}, "endpoint": server}
    suite = {"name": "mine", "models": [{"path": str(tmp_path / "tiny")}], "probes": ["size"], "methods": methods}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(suite))
    return plan(path, device="cpu")


def test_a_suite_names_the_command_and_the_cell_whose_artifact_it_serves(tmp_path: Path) -> None:
    shown = planned(tmp_path, serve="serve -m {artifact} --port {port}", artifact="rtn 4-bit g64")
    origin = next(p.cell.origin for p in shown.cells if p.cell.label == "served")
    assert isinstance(origin, Served)
    assert (origin.serve, origin.artifact) == ("serve -m {artifact} --port {port}", "rtn 4-bit g64")
    assert any("served: `run` starts a program, where QUANT_HARNESS_SERVE=1 permits it: serve -m" in n for n in shown.notes)


def test_a_server_that_somebody_else_runs_is_the_same_cell_as_before(tmp_path: Path) -> None:
    origin = next(p.cell.origin for p in planned(tmp_path).cells if p.cell.label == "served")
    assert origin.identity() == {
        "kind": "served",
        "method": "endpoint",
        "bits": 0.0,
        "options": {},
        "url": "http://127.0.0.1:8123/v1",
        "model": "m",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"serve": "serve --port {prot}"}, r"line 1: endpoint: serve: \{prot\} stands for nothing"),
        ({"serve": "serve {port}", "url": "https://x.example/v1"}, "write its port into the address"),
        ({"serve": "serve {port}", "url": "http://127.0.0.1/v1"}, "write its port into the address"),
        ({"artifact": "rtn 4-bit g64"}, "give its command too: serve"),
        ({"serve": "serve {port}", "artifact": "rtn 4-bit g64"}, r"put \{artifact\} where its file"),
        ({"serve": "serve {port}", "wait": 0}, "wait: 0 is no number above 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_place(
    options: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        planned(tmp_path, **options)


def test_an_artifact_of_no_cell_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"rtn 4-bit"):
        planned(tmp_path, serve="serve -m {artifact}", artifact="rtn 4-bit")


def test_a_suite_that_starts_programs_is_not_run_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = planned(tmp_path, serve="serve --port {port}")
    monkeypatch.delenv("QUANT_HARNESS_SERVE", raising=False)
    with pytest.raises(BadInput, match=r"this suite starts programs:\n  serve --port \{port\}\nif you know them, permit it"):
        own_servers.check_permission(shown)
    monkeypatch.setenv("QUANT_HARNESS_SERVE", "1")
    own_servers.check_permission(shown)
    own_servers.check_permission(planned(tmp_path))


def test_the_suite_of_the_page_can_be_planned_and_its_other_commands_are_well_formed(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "endpoint.md").read_text()
    (block,) = (one for one in re.findall(r"^```yaml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL) if "serve:" in one)
    tiny_folder.write(tmp_path / "my-model", hidden=256)
    path = tmp_path / "shown.yaml"
    path.write_text(f"name: shown\nprobes: [size]\n{block}")
    assert {"bf16", "gguf 4-bit Q4_K_M", "llama-server"} <= {p.cell.label for p in plan(path, device="cpu").cells}
    others = re.findall(r"^\| [^|]+ \| `([^`]*)`[^|]* \| `/v\d` \|$", page, flags=re.MULTILINE)
    assert len(others) == 6
    for command in others:
        artifact = "gguf 4-bit Q4_K_M" if "{artifact}" in command else ""
        assert _serve_command.wrong(command, artifact=artifact, token_env="") is None, command
