"""A suite that asks instruct models as they are served: what its plan says, what decides a key, what a run stores."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import report, store
from harness.cli import main
from harness.errors import BadInput
from harness.run import identity, runner
from harness.scoring.chat import Conversations
from harness.spec import Question
from harness.suite.matrix import plan
from harness.suite.plan import Plan
from tests.instruct import DATED, INST, NO_SYSTEM, words, write_tasks
from tests.right.cases import checkpoint
from tests.tiny_llama import llama

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

Write = Callable[..., Path]
ASKED = "{task: asked, include: tasks, shots: 2"


@pytest.fixture
def write(tmp_path: Path, model_folder: Path) -> Write:
    """Writes a suite of one model with this template (None: none) and two tasks; `entry` is added to the first one's."""
    write_tasks(tmp_path / "tasks", count=6)

    def written(template: Any = INST, entry: str = "", extra: str = "") -> Path:
        for old in model_folder.rglob("*.jinja"):
            old.unlink()
        words("inst", chat_template=template).save_pretrained(model_folder)
        path = tmp_path / "mine.yaml"
        lines = [
            "name: mine",
            f"models: [{{path: {model_folder}, name: tiny}}]",
            "methods: {bf16: }",
            "probes: [tasks]",
            f"tasks: [{ASKED}{entry}}}, {{task: said, include: tasks}}]",
            extra,
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    return written


def asked(planned: Plan, task: str = "asked") -> Question:
    return next(q for q in planned.cells[-1].questions if q.subject == task)


def keys(path: Path, cache: Path, *, day: str | None = None) -> dict[str, str]:
    planned = plan(path, device="cpu")
    inputs = identity.gather(planned, cache)
    inputs = inputs if day is None else replace(inputs, today=day)
    cell = planned.cells[-1]
    return {q.subject: inputs.key(cell.cell, q) for q in cell.questions}


def test_a_task_says_for_itself_how_it_is_asked_and_else_the_suite_says_it(write: Write) -> None:
    plain = plan(write(), device="cpu")
    assert not {"chat", "system"} & (asked(plain).options.keys() | asked(plain, "said").options.keys())
    one = plan(write(entry=", chat_template: true, system: Be brief."), device="cpu")
    assert asked(one).options["chat"] == {"template": True, "multiturn": True}, "examples are turns, as is lm-eval's default"
    assert asked(one).options["system"] == "Be brief."
    assert "chat" not in asked(one, "said").options
    both = plan(write(extra="chat_template: true\nmultiturn: false", entry=", multiturn: true"), device="cpu")
    assert asked(both).options["chat"] == {"template": True, "multiturn": True}
    assert asked(both, "said").options["chat"] == {"template": True, "multiturn": False}
    not_one = plan(
        write(extra="chat_template: true\nsystem: Be brief.", entry=', chat_template: false, system: ""'), device="cpu"
    )
    assert not {"chat", "system"} & asked(not_one).options.keys()
    assert asked(not_one, "said").options["system"] == "Be brief."


def test_examples_as_turns_need_a_conversation(write: Write) -> None:
    with pytest.raises(BadInput, match="line 5: task 'asked': multiturn: true makes the examples turns of a conversation"):
        plan(write(entry=", multiturn: true"), device="cpu")
    with pytest.raises(BadInput, match="line 5: task 'asked': multiturn: true"):
        plan(write(entry=", multiturn: true, chat_template: false", extra="chat_template: true"), device="cpu")


@pytest.mark.parametrize(
    ("template", "entry", "says"),
    [
        (None, ", chat_template: true", "line 5: model 'tiny': its tokenizer has no chat template, so there is no conversation"),
        (INST, ", chat_template: tools", "line 5: model 'tiny': unknown chat template 'tools'; known: default"),
        ({"short": INST, "long": INST}, ", chat_template: true", "no default one; name it: chat_template: long or short"),
        (
            NO_SYSTEM,
            ", chat_template: true, system: Be brief.",
            r"takes no system message \(it says: System role not supported\)",
        ),
    ],
)
def test_a_template_that_the_model_has_not_is_refused_by_plan(template: Any, entry: str, says: str, write: Write) -> None:
    with pytest.raises(BadInput, match=says):
        plan(write(template, entry), device="cpu")


def test_a_template_that_the_suite_asks_for_is_missed_at_the_suites_line(write: Write) -> None:
    with pytest.raises(BadInput, match="line 6: model 'tiny': its tokenizer has no chat template"):
        plan(write(None, extra="chat_template: true"), device="cpu")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.content }}", r"broken: line 1: Unexpected end of template"),
        ("{{ raise_exception('not today') }}", "broken: it refuses a single question of a user: not today"),
        ("{{ '' }}", "broken: what a user says is not in what it writes"),
    ],
)
def test_a_template_that_is_broken_is_refused_by_plan_with_its_file(template: str, says: str, write: Write) -> None:
    path = write(template=template, extra="chat_template: true")
    with pytest.raises(BadInput, match=rf"line \d+: model 'tiny': .*chat_template\.jinja: the chat template is {says}"):
        plan(path, device="cpu")


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.content }}", "{{ raise_exception('not today') }}", "{{ '' }}"])
def test_and_by_who_applies_it_as_bad_input(template: str) -> None:
    with pytest.raises(BadInput, match=r"its chat template .* is broken"):
        Conversations(tokenizer=words("inst", chat_template=template))([{"role": "user", "content": "river"}])


def test_plan_says_in_one_line_that_a_model_is_scored_unlike_it_is_served(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(write()), "--device", "cpu"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "chat template" in line]
    assert lines == [
        "note         model 'tiny' has a chat template, and asked, said are scored without it; to score it as it is served: "
        "chat_template: true"
    ]
    assert len(plan(write(entry=", chat_template: true"), device="cpu").notes) == 1
    assert "said is scored without it" in plan(write(entry=", chat_template: true"), device="cpu").notes[0]
    assert not plan(write(extra="chat_template: true"), device="cpu").notes
    assert not plan(write(None), device="cpu").notes


def test_choice_and_template_are_in_the_key(write: Write, tmp_path: Path) -> None:
    seen = [
        keys(write(**how), tmp_path)["asked"]
        for how in (
            {},
            {"entry": ", chat_template: true"},
            {"entry": ", chat_template: true, multiturn: false"},
            {"entry": ", chat_template: true, system: Be brief."},
            {"entry": ", chat_template: true, system: Be long."},
            {"entry": ", system: Be brief."},
            {"entry": ", chat_template: default"},
        )
    ]
    assert len(set(seen)) == len(seen)
    assert keys(write(entry=", chat_template: true"), tmp_path)["asked"] == seen[1]
    planned = plan(write(entry=", chat_template: true"), device="cpu")
    inputs = identity.gather(planned, tmp_path)
    cell = planned.cells[-1].cell
    other = replace(inputs, templates={"tiny": {"default": INST + " "}})
    assert inputs.key(cell, asked(planned)) != other.key(cell, asked(planned))
    assert inputs.key(cell, asked(planned, "said")) == other.key(cell, asked(planned, "said"))


def test_the_day_is_in_the_key_where_the_template_asks_for_it(write: Write, tmp_path: Path) -> None:
    def on(template: str, day: str) -> str:
        return keys(write(template, ", chat_template: true"), tmp_path, day=day)["asked"]

    assert on(DATED, "2026-11-29") != on(DATED, "2026-11-30")
    assert on(INST, "2026-11-29") == on(INST, "2026-11-30")


@pytest.mark.slow
def test_a_run_asks_every_cell_in_the_models_own_words_and_the_report_names_them(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    checkpoint(tmp_path / "tiny", model=llama(max_position_embeddings=512), words=words("inst"))
    suite = tmp_path / "mine.yaml"
    until = "{task: begun, include: tasks, shots: 1, chat_template: true, budget: auto}"
    suite.write_text(
        "name: mine\nmodels: [./tiny]\nprobes: [tasks]\nmethods: {bf16: , rtn: {bits: 4, group_size: 64}}\n"
        f"tasks: [{ASKED}, chat_template: true}}, {until}, {{task: said, include: tasks}}]\n"
    )
    settings = runner.Settings(results=tmp_path / "results", cache=tmp_path / "cache", threads=1)
    stored = store.read(runner.run(plan(suite, device="cpu"), settings))
    assert [r.failure for r in stored.records if r.failure] == []

    def definitions(task: str, metric: str) -> set[str]:
        answers = [r.answer for r in stored.records if r.question.subject == task and r.answer is not None]
        return {m.definition for answer in answers for m in answer.measurements if m.metric == metric}

    (asked,) = definitions("asked", "accuracy")
    assert re.fullmatch(r"lm-eval asked v1\.0 acc, 2-shot, chat template [0-9a-f]{12}, examples as turns", asked)
    (begun,), (verdict,) = definitions("begun", "accuracy"), definitions("begun", "sequential_verdict")
    assert begun == asked.replace("asked v1.0 acc, 2-shot", "begun v1.0 acc, 1-shot")
    assert verdict == f"{begun}, until a verdict on a margin of 1 point"
    assert definitions("said", "accuracy") == {"lm-eval said v2.0 exact_match, 0-shot"}
    page = report.render(stored).decode()
    assert asked in page
    assert "has a chat template, and said is scored without it" in page
