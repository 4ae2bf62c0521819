"""Cells of a running server in a suite: planned, run through the real runner, and drawn; what is wrong with them said at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import report, store
from harness.errors import BadInput, UnknownName
from harness.run import runner
from harness.spec import Record, Running, Scheme, Served
from harness.suite import matrix, plan
from tests import openai_server
from tests.openai_server import NAME
from tests.tiny_llama import llama, text, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def planned(tmp_path: Path, folder: Path, entry: str, extra: str = "", models: str = "") -> plan.Plan:
    path = tmp_path / "served.yaml"
    models = models or f"[{{path: {folder}, name: tiny}}]"
    path.write_text(f"name: served\nmodels: {models}\nbaseline: bf16\nmethods:\n  bf16:\n  endpoint: {entry}\n{extra}\n")
    return matrix.plan(path, device="cpu")


def test_a_server_is_a_cell_with_the_questions_that_it_can_be_asked(tmp_path: Path, model_folder: Path) -> None:
    entry = "[{url: 'http://127.0.0.1:8000/v1', model: m, bits: 4, name: vLLM AWQ}, {url: 'http://127.0.0.1:8000/v1', model: n}]"
    plan = planned(tmp_path, model_folder, entry, "serving: {concurrency: [1, 4], prompt: 32, new: 8}")
    base, named, plain = plan.cells
    assert (named.cell.label, plain.cell.label) == ("vLLM AWQ", "n at 127.0.0.1:8000")
    assert (named.cell.bits, plain.cell.bits) == (4, 0)
    assert {q.probe for q in named.questions} == {"size", "memory", "serving"}
    assert [q.subject for q in named.questions if q.probe == "serving"] == ["pp32 tg8 x1", "pp32 tg8 x4"]
    assert "serving" not in {q.probe for q in base.questions}
    assert {"latency", "quantize"} <= {q.probe for q in base.questions}
    assert named.cell.origin == Served(
        scheme=Scheme(method="endpoint", bits=4.0), url="http://127.0.0.1:8000/v1", model="m", token_env=""
    )
    assert named.cell.running == Running(engine="endpoint")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{model: m}", "url: name the server"),
        ("{url: 'http://localhost:8000/v1'}", "model: name the model"),
        ("{url: 'ftp://host/v1', model: m}", "begins with http"),
        ("{url: 'http://host:99999/v1', model: m}", "write it as"),
        ("{url: 'http://host/v1/../../\"><script>', model: m}", "characters that an address does not have"),
        ("{url: 'http://user:sk-hidden@host/v1', model: m}", "leave credentials"),
        ("{url: 'http://host/v1?key=sk-hidden', model: m}", "leave credentials"),
        ("{url: 'http://host/v1', model: m, token_env: sk-hidden-token}", "not the token itself"),
        ("{url: 'http://host/v1', model: m, bits: many}", "no bit width"),
        ("{url: 'http://host/v1', model: m, token: sk-hidden}", "unknown option of endpoint 'token'"),
    ],
)
def test_mistakes_are_answered_at_once_and_secrets_are_not_repeated(
    entry: str, said: str, tmp_path: Path, model_folder: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        planned(tmp_path, model_folder, entry)
    assert said in str(caught.value)
    assert "line 6" in str(caught.value)
    assert "sk-hidden" not in str(caught.value)


def test_of_several_models_the_served_one_is_named(tmp_path: Path, model_folder: Path) -> None:
    two = f"[{{path: {model_folder}, name: a}}, {{path: {model_folder}, name: b}}]"
    with pytest.raises(BadInput, match="say which one"):
        planned(tmp_path, model_folder, "{url: 'http://h/v1', model: m}", models=two)
    with pytest.raises(UnknownName, match="'c'"):
        planned(tmp_path, model_folder, "{url: 'http://h/v1', model: m, of: c}", models=two)
    plan = planned(tmp_path, model_folder, "{url: 'http://h/v1', model: m, of: b}", models=two)
    assert [p.cell.model.name for p in plan.cells if p.cell.method == "endpoint"] == ["b"]


SUITE = """
corpora: [{path: text.txt, name: text, window: 32, tokens: 320}]
tasks: [{task: reference_facts, limit: 3}, {task: reference_arithmetic, limit: 2}]
serving: {concurrency: [1, 2], prompt: 16, new: 4, requests: 6, budget: 20}
memory: {prompt: 16, new: 4}
device: cpu
probes: [size, perplexity, divergence, tasks, memory, serving]
"""


def answered(tmp_path: Path, folder: Path, entry: str) -> tuple[Path, dict[tuple[str, str, str], Record]]:
    (tmp_path / "text.txt").write_text(text(200, seed=7))
    plan = planned(tmp_path, folder, entry, SUITE)
    done = runner.run(plan, runner.Settings(results=tmp_path / "results", cache=tmp_path / "cache"))
    return done, {(r.cell.label, r.question.probe, r.question.subject): r for r in store.read(done).records}


def value(record: Record, metric: str) -> float:
    assert record.answer is not None, record.failure
    return next(m.value for m in record.answer.measurements if m.metric == metric)


def test_a_suite_measures_a_server_beside_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The served model is the baseline itself, in float32: perplexity and answers are the baseline's but for rounding."""
    model, folder = llama(), tmp_path / "tiny"
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    monkeypatch.setenv("SERVER_TOKEN", "sk-very-secret-1234")
    with openai_server.Served(model, tokenizer(), token="sk-very-secret-1234") as server:
        entry = (
            f"[{{url: '{server.url}', model: {NAME}, name: server, token_env: SERVER_TOKEN}},"
            f" {{url: 'http://127.0.0.1:9/v1', model: m, name: gone}},"
            f" {{url: '{server.url}', model: other, name: other, token_env: SERVER_TOKEN}}]"
        )
        done, records = answered(tmp_path, folder, entry)

    assert value(records["server", "perplexity", "text"], "perplexity") == pytest.approx(
        value(records["bf16", "perplexity", "text"], "perplexity"), rel=0.02
    )
    for task in ("reference_facts", "reference_arithmetic"):
        assert 0 <= value(records["server", "tasks", task], "accuracy") <= 1
    for probe, subject, said in (
        ("size", "", "does not say what it stores"),
        ("divergence", "text", "not the whole distribution"),
    ):
        failure = records["server", probe, subject].failure
        assert failure is not None
        assert failure.kind == "unsupported"
        assert said in failure.message

    memory = records["server", "memory", "16+4 x1"]
    assert value(memory, "server_bytes") > 100e6  # this very process, with torch in it
    assert memory.answer is not None
    assert memory.answer.facts["decode"]["new_tokens"] == [4]

    for clients in (1, 2):
        record = records["server", "serving", f"pp16 tg4 x{clients}"]
        assert value(record, "served_failed") == 0
        assert value(record, "served_ttft") > 0
        assert value(record, "served_tpot") > 0
        assert record.answer is not None
        facts = record.answer.facts
        assert value(record, "served_throughput") == pytest.approx(facts["new_tokens"] / facts["seconds"])
        assert facts["new_tokens"] == 6 * 4
        assert facts["prompt_tokens"] == 16

    gone = [r.failure for (label, _, _), r in records.items() if label == "gone"]
    assert {f.kind for f in gone if f is not None} == {"environment"}
    assert all("nobody answers there" in f.message for f in gone if f is not None)
    assert all(r.failure is not None and "no model 'other'" in r.failure.message for k, r in records.items() if k[0] == "other")

    everything = b"".join(p.read_bytes() for root in ("results", "cache") for p in (tmp_path / root).rglob("*") if p.is_file())
    assert b"sk-very-secret" not in everything
    assert b"SERVER_TOKEN" in everything
    page = report.render(store.read(done))
    assert b"sk-very-secret" not in page
    assert b"server" in page
