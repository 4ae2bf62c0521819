"""The endpoint engine against a server whose every answer is known, and against servers that lie, fail or are gone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from harness import spec
from harness.child.failures import failure_kind
from harness.engines.base import Loaded, Partial
from harness.engines.endpoint import Endpoint
from harness.engines.transformers import Transformers
from harness.errors import ServerTrouble, Unsupported
from harness.methods import METHODS
from harness.methods.base import resolve_options
from harness.runtimes.http import Client, Limits
from harness.runtimes.openai_server import Server, introduce, run_load
from harness.scoring import FastLM
from harness.spec import Quantized, Scheme
from tests.openai_server import NAME, Canned, Served, whole
from tests.tiny_llama import TinySession, corpus_question, llama, text, tokenizer, windows

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
SHORT = Limits(
    connect_seconds=10, silence_seconds=20, request_seconds=60, reply_bytes=1 << 20, event_bytes=1 << 16, pause_seconds=0
)
HASTY = dataclasses.replace(SHORT, silence_seconds=0.4, request_seconds=1.0)


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # lm-eval's
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source model's folder: its tokenizer and limits are what the engine reads of it."""
    path = tmp_path_factory.mktemp("source")
    llama().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@functools.cache
def tiny() -> Any:
    return llama()


def served(url: str, **changes: Any) -> spec.Served:
    return replace(spec.Served(scheme=Scheme(method="endpoint", bits=4.0), url=url, model=NAME), **changes)


def engine(server: Any, folder: Path, *, limits: Limits | None = None, bos: bool = True, **options: str) -> Endpoint:
    return Endpoint(Server(served(server.url, **options), tokenizer(bos), limits=limits), model_dir=folder)


def sentences(count: int, length: int, *, bos: bool) -> list[list[int]]:
    """Windows of real text, whose ids are what its own tokenizer gives for their text."""
    read = tokenizer(bos)
    return [read(text(20, seed=number))["input_ids"][:length] for number in range(count)]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


PAIRS = [
    ("The old bridge crosses the", " river"),
    ("The old bridge crosses the", " green stone house"),
    ("Seven birds", " before noon"),
    ("", "more water"),
]

KINDS: dict[str, dict[str, Any]] = {
    "token ids, named by id": {},
    "token ids, penalties unless told not to": {"penalizes": True},
    "token ids, named by text": {"names_ids": False},
    "token ids, strict about fields": {"strict": True},
    "text, BOS added by the server": {"by_ids": False, "adds_bos": True, "names_ids": False},
}


def test_the_engine_keeps_the_protocol(folder: Path) -> None:
    with Served(tiny(), tokenizer()) as server:
        found = engine(server, folder)
        protocol = {name for name in vars(Loaded) if not name.startswith("_")}
        assert all(hasattr(found, name) for name in protocol)
        assert isinstance(found, Partial)
        assert not isinstance(Transformers(tiny(), tokenizer()), Partial)
        assert found.facts().simulated is False


@pytest.mark.parametrize("kind", KINDS)
def test_windows_and_log_likelihoods_are_those_of_the_served_model(kind: str, folder: Path) -> None:
    asked = sentences(3, 24, bos=True)
    with Served(tiny(), tokenizer(), **KINDS[kind]) as server:
        found = engine(server, folder)
        assert found.lacks("windows") is None
        ours = np.stack([scores.nll for scores in found.score_windows(asked, None)])
        pairs = found.lm().loglikelihood(requests("loglikelihood", *PAIRS))
        rolling = found.lm().loglikelihood_rolling(requests("loglikelihood_rolling", (text(3),)))
    exact = np.stack([scores.nll for scores in Transformers(tiny(), tokenizer()).score_windows(asked, None)])
    np.testing.assert_allclose(ours, exact, atol=2e-4)
    local = FastLM(tiny(), tokenizer=tokenizer())
    expected = local.loglikelihood(requests("loglikelihood", *PAIRS))
    np.testing.assert_allclose([a for a, _ in pairs], [a for a, _ in expected], atol=1e-3)
    assert [greedy for _, greedy in pairs] == [greedy for _, greedy in expected]
    np.testing.assert_allclose(rolling, local.loglikelihood_rolling(requests("loglikelihood_rolling", (text(3),))), atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_generations_are_those_of_the_served_model_cut_as_lm_eval_cuts_them(kind: str, folder: Path) -> None:
    local = FastLM(tiny(), tokenizer=tokenizer())
    (free,) = local.generate_until(requests("generate_until", ("The old bridge", {"until": [], "max_gen_toks": 12})))
    stop = free[len(free) // 2 :][:2]
    asked = requests(
        "generate_until",
        ("The old bridge", {"until": [stop], "max_gen_toks": 12}),
        ("The old bridge", {"until": ["\x00", "\x01", "\x02", "\x03", stop], "max_gen_toks": 12}),  # one more than are sent
        ("Seven birds", {"until": [], "max_gen_toks": 5}),
    )
    with Served(tiny(), tokenizer(), **KINDS[kind]) as server:
        found = engine(server, folder).lm().generate_until(asked)
        assert all(body["temperature"] == 0 for body in server.asked)
    assert found == local.generate_until(asked)
    assert stop not in found[0]


def test_a_task_that_samples_is_unsupported(folder: Path) -> None:
    asked = requests("generate_until", ("The", {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 0.7}))
    with Served(tiny(), tokenizer()) as server, pytest.raises(Unsupported, match="greedily"):
        engine(server, folder).lm().generate_until(asked)


def test_a_server_without_log_probabilities_generates_and_is_asked_no_windows(folder: Path) -> None:
    with Served(tiny(), tokenizer(), echoes=False) as server:
        found = engine(server, folder)
        assert "echoes none" in str(found.lacks("windows"))
        with pytest.raises(Unsupported, match="no log-probabilities of prompts"):
            list(found.score_windows(windows(1, 8), None))
        with pytest.raises(Unsupported, match="no log-probabilities of prompts"):
            found.lm().loglikelihood(requests("loglikelihood", *PAIRS))
        assert found.lm().generate_until(requests("generate_until", ("The", {"until": [], "max_gen_toks": 3})))[0]


def test_divergence_is_unsupported_and_perplexity_is_not_held_up_by_it(folder: Path, tmp_path: Path) -> None:
    from harness.probes.divergence import PROBE as DIVERGENCE
    from harness.probes.perplexity import PROBE as PERPLEXITY

    corpus, stored = text(60), tmp_path / "baseline"
    question = corpus_question("perplexity", "gptq-32", 32)
    local = TinySession(Transformers(tiny(), tokenizer()), folder, corpus=corpus, baseline=stored, is_baseline=True)
    exact = PERPLEXITY.measure(local, question).measurements[0].value
    local.stored_baseline(question)
    with Served(tiny(), tokenizer()) as server:
        found: Any = engine(server, folder)
        session = TinySession(found, folder, corpus=corpus, baseline=stored)
        assert PERPLEXITY.measure(session, question).measurements[0].value == pytest.approx(exact, rel=1e-4)
        with pytest.raises(Unsupported, match="not the whole distribution"):
            DIVERGENCE.measure(session, corpus_question("divergence", "gptq-32", 32))
        with pytest.raises(Unsupported, match="not the whole distribution"):
            found.store_baseline(windows(1, 8), tmp_path / "none")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"shifts": 0.2}, "differs by"),
        ({"late": True}, "changes with the token that stands there"),
        ({"late": True, "by_ids": False, "adds_bos": True, "names_ids": False}, "changes with the token that stands there"),
        ({"misreads": 3}, "nothing shows that it serves this model"),
        ({"by_ids": False, "counts": False}, "does not say how many tokens"),
    ],
)
def test_a_server_whose_answers_do_not_hold_together_is_not_believed(kind: dict[str, Any], said: str, folder: Path) -> None:
    with Served(tiny(), tokenizer(), **kind) as server, pytest.raises(Unsupported, match=said):
        list(engine(server, folder).score_windows(windows(1, 8), None))


def test_a_server_with_another_tokenizer_is_found_out(folder: Path) -> None:
    """It reads as many tokens, and gives other pieces for them."""
    other = Served(tiny(), tokenizer(), names_ids=False)
    ids = other.ids
    other.ids = lambda prompt: [(token + 7) % 400 + 3 for token in ids(prompt)]  # type: ignore[method-assign]
    with other as server:
        assert "reads other tokens" in str(engine(server, folder).lacks("windows"))


def test_a_text_server_that_reads_a_window_as_other_tokens_says_so(folder: Path) -> None:
    cut = [[1, *windows(1, 16)[0]]]  # random ids, whose text is read as other tokens
    with (
        Served(tiny(), tokenizer(), by_ids=False, adds_bos=True) as server,
        pytest.raises(Unsupported, match=r"reads a prompt of"),
    ):
        list(engine(server, folder).score_windows(cut, None))


# ------------------------------------------------------------------ trouble


def trouble(answer: Any, folder: Path, *, everywhere: bool = False) -> ServerTrouble:
    with Canned(answer, everywhere=everywhere) as server, pytest.raises(ServerTrouble) as caught:
        engine(server, folder, limits=SHORT).model.complete({"prompt": "a", "max_tokens": 1})
    return caught.value


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (whole(b'{"error": {"message": "no room"}}', "500 Oops"), "error", "no room"),
        (whole(b'{"error": "gone fishing"}', "503 Busy", "Retry-After: 0\r\n"), "environment", "still busy after 4 tries"),
        (whole(b"", "302 Found", "Location: http://elsewhere.example/\r\n"), "environment", "not followed"),
        (whole(b"<html>hello"), "error", "is no JSON"),
        (whole(b"[" * 100_000), "error", "is no JSON"),
        (whole(b'{"choices": []}'), "error", "holds no completion"),
        (whole(b'"choices"'), "error", "holds no completion"),
        (whole(b"x" * (2 << 20)), "error", "larger than"),
        (whole(b"\x1f\x8b\x08", headers="Content-Encoding: gzip\r\n"), "error", "compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", "environment", "before the end"),
        (b"SSH-2.0-OpenSSH\r\n", "error", "does not speak HTTP"),
        (b"", "environment", "nobody answers"),
    ],
)
def test_what_a_sound_server_does_not_send_is_a_typed_failure(answer: bytes, kind: str, said: str, folder: Path) -> None:
    found = trouble(answer, folder)
    assert said in str(found)
    assert failure_kind(found) == kind
    assert len(str(found)) < 1000


def test_words_of_a_server_are_shown_without_control_characters_and_without_end(folder: Path) -> None:
    said = str(trouble(whole(b'{"error": {"message": "\\u001b[31m' + b"x" * 5000 + b'"}}', "500 Oops"), folder))
    assert "\x1b" not in said
    assert len(said) < 600


def test_a_server_that_says_nothing_or_trickles_is_left(folder: Path) -> None:
    given_up = threading.Event()  # the server goes on until the client has had enough

    def silent(file: Any) -> None:
        given_up.wait()

    def trickle(file: Any) -> None:
        file.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not given_up.wait(0.1):
            file.write(b" ")
            file.flush()

    for answer, said in ((silent, "no answer within 0.4 s"), (trickle, "took more than 1 s")):
        given_up.clear()
        with Canned(answer) as server:
            try:
                with pytest.raises(ServerTrouble, match=said) as caught:
                    dataclasses.replace(engine(server, folder).model.client, limits=HASTY).post("/completions", {})
            finally:
                given_up.set()
        assert failure_kind(caught.value) == "timeout"


def test_a_server_that_is_gone_is_named(folder: Path) -> None:
    with Served(tiny(), tokenizer()) as server:
        found = engine(server, folder)
    with pytest.raises(ServerTrouble, match="nobody answers there") as caught:
        found.model.complete({"prompt": "a", "max_tokens": 1})
    assert caught.value.kind == "environment"


def test_a_model_that_the_server_does_not_list_is_answered_with_those_it_lists() -> None:
    with Served(tiny(), tokenizer()) as server, pytest.raises(ServerTrouble, match=f"no model 'other'; it lists '{NAME}'"):
        introduce(served(server.url, model="other"))


def test_an_address_without_an_api_says_what_addresses_end_with() -> None:
    with Served(tiny(), tokenizer()) as server, pytest.raises(ServerTrouble, match="usually ends with /v1"):
        Client(url=server.url).post("/nothing", {"model": NAME})
    with Canned(whole(b"{}"), everywhere=True) as other, pytest.raises(ServerTrouble, match="usually ends with /v1"):
        introduce(served(other.url))


def test_a_busy_server_is_asked_again(folder: Path) -> None:
    with Served(tiny(), tokenizer(), busy=2) as server:
        choice, _ = engine(server, folder, limits=SHORT).model.complete({"prompt": "The", "max_tokens": 1})
        assert choice["text"]
        assert len(server.asked) == 3


def test_a_token_comes_from_the_environment_and_is_never_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-very-secret-1234"
    with Served(tiny(), tokenizer(), token=secret) as server:
        with pytest.raises(ServerTrouble, match="it wants a token") as nameless:
            engine(server, folder)
        with pytest.raises(ServerTrouble, match=r"\$MY_TOKEN, which is not set"):
            engine(server, folder, token_env="MY_TOKEN")
        monkeypatch.setenv("MY_TOKEN", "sk-wrong-secret-99")
        with pytest.raises(ServerTrouble, match=r"the token in \$MY_TOKEN is not accepted") as wrong:
            engine(server, folder, token_env="MY_TOKEN")
        assert "sk-wrong" not in str(wrong.value)
        assert "[token]" in str(wrong.value)  # the server repeated it
        monkeypatch.setenv("MY_TOKEN", "two\r\nlines")
        with pytest.raises(ServerTrouble, match="characters that no token has") as broken:
            engine(server, folder, token_env="MY_TOKEN")
        assert "lines" not in str(broken.value).replace("characters", "")
        monkeypatch.setenv("MY_TOKEN", secret)
        found = engine(server, folder, token_env="MY_TOKEN")
        assert secret not in repr(found.facts()) + repr(found.model.client) + repr(found.lm().report())
        assert {wrong.value.kind, nameless.value.kind, broken.value.kind} == {"environment"}


# ------------------------------------------------------------------ load


def test_clients_ask_together_and_the_server_counts_the_tokens(folder: Path) -> None:
    with Served(tiny(), tokenizer(), pause=0.03) as server:
        load = run_load(engine(server, folder).model, clients=3, requests=7, prompt=16, new=5, seed=1, budget_seconds=30)
        prompts = [tuple(body["prompt"]) for body in server.asked if body.get("stream")]
        assert server.most_at_once >= 2
    assert len(load.rows) == 7
    assert load.new_tokens == 7 * 5
    assert load.prompt_tokens == 16
    assert len(set(prompts)) == 7  # no cache of prefixes knows one
    for row in load.rows:
        assert 0 < row.first_seconds < row.last_seconds
        assert row.tpot_seconds == pytest.approx((row.last_seconds - row.first_seconds) / 4)


def test_a_stream_that_breaks_off_is_a_failed_request_and_never_a_fast_one(folder: Path) -> None:
    with Served(tiny(), tokenizer(), breaks_off=2) as server:
        load = run_load(engine(server, folder).model, clients=1, requests=2, prompt=8, new=6, seed=1, budget_seconds=5)
    assert not load.rows
    assert len(load.failures) == 2
    assert "ended before the answer did" in load.failures[0]


def test_a_stream_without_counts_has_no_time_per_token(folder: Path) -> None:
    with Served(tiny(), tokenizer(), by_ids=True) as server:
        found = engine(server, folder)
        assert found.model.prompts.by_ids
        server.counts = False
        load = run_load(found.model, clients=1, requests=1, prompt=8, new=4, seed=1, budget_seconds=5)
    assert load.new_tokens is None
    assert load.rows[0].tpot_seconds is None


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (b'data: {"error": {"message": "out of slots"}}\n\n', "out of slots"),
        (b"data: {nonsense\n\n", "is no JSON"),
        (b"data: " + b"x" * 100_000, "an event of more than"),
    ],
)
def test_hostile_events_are_typed_failures(event: bytes, said: str, folder: Path) -> None:
    with Canned(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event) as server:
        found = engine(server, folder, limits=SHORT)
        found.model.__dict__["ignores_eos"] = True
        with pytest.raises(ServerTrouble, match=said):
            found.model.stream("a", 4)


# ------------------------------------------------------------------ a real server

SERVER_PACKAGES = ("llama_cpp", "gguf", "uvicorn", "fastapi", "starlette_context", "sse_starlette", "pydantic_settings")


@contextlib.contextmanager
def llama_cpp_server(source: Path, out: Path) -> Iterator[tuple[Endpoint, Any]]:
    """llama-cpp-python's own server over a model in Q8_0: the engine that asks it, and one that runs the same file."""
    from transformers import AutoTokenizer

    from harness.engines.llamacpp import LlamaCpp
    from harness.methods.base import QuantizeRequest
    from harness.runtimes.llama_cpp import Weights

    made = Scheme(method="gguf", bits=8.0, options=resolve_options(METHODS["gguf"], {}, 8.0))
    asked = QuantizeRequest(model_dir=source, out_dir=out, origin=Quantized(scheme=made), calibration=None, device="cpu", seed=0)
    METHODS["gguf"].quantize(asked)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "llama_cpp.server", "--model", str(out / "model.gguf"), "--port", str(port)]
    command += ["--model_alias", NAME, "--n_ctx", "512", "--n_threads", "1", "--n_threads_batch", "1"]
    with (out / "log.txt").open("wb") as log:
        server = subprocess.Popen([*command, "--interrupt_requests", "false"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(600):
            try:
                Client(url=url).get("/models")
                break
            except ServerTrouble:
                assert server.poll() is None, (out / "log.txt").read_text()[-3000:]
                time.sleep(0.1)
        read = AutoTokenizer.from_pretrained(str(source))
        yield Endpoint(Server(served(url), read), model_dir=source), LlamaCpp(Weights(out / "model.gguf"), read, model_dir=source)
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def _server_is_here() -> None:
    lacking = [name for name in SERVER_PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        install = "pip install -e '.[gguf]' 'llama-cpp-python[server]'"
        pytest.skip(f"{', '.join(lacking)} not installed (llama.cpp compiles for minutes): {install}")


@pytest.mark.usefixtures("_server_is_here")
def test_llama_cpp_pythons_server_answers_as_the_file_that_it_serves(folder: Path, tmp_path: Path) -> None:
    """A model with BOS: log-likelihoods and generation are those of the file; the token after BOS has none, and that is said."""
    with llama_cpp_server(folder, tmp_path) as (found, local):
        assert found.lacks("windows") is None
        assert found.model.prompts.adds_bos
        assert not found.model.prompts.by_ids
        pairs = requests("loglikelihood", *PAIRS[:3])
        got, expected = found.lm().loglikelihood(pairs), local.lm().loglikelihood(pairs)
        np.testing.assert_allclose([a for a, _ in got], [a for a, _ in expected], atol=0.05)
        assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
        with pytest.raises(Unsupported, match="first token after BOS"):
            found.lm().loglikelihood(requests("loglikelihood", PAIRS[3]))
        with pytest.raises(Unsupported, match="first token after BOS"):
            list(found.score_windows(sentences(1, 24, bos=True), None))
        asked = requests("generate_until", ("The old bridge", {"until": [], "max_gen_toks": 2}))  # random weights: ties come soon
        assert found.lm().generate_until(asked) == local.lm().generate_until(asked)


@pytest.mark.usefixtures("_server_is_here")
def test_llama_cpp_pythons_server_is_not_believed_where_its_log_probabilities_are_one_token_late(tmp_path: Path) -> None:
    """A model without BOS. Generation, timing and memory are what they are."""
    from harness import reference
    from harness.measure import processes

    with llama_cpp_server(reference.MODEL_DIR, tmp_path) as (found, local):
        assert "changes with the token that stands there" in str(found.lacks("windows"))
        passage = " ".join((reference.MODEL_DIR.parent / "heldout.txt").read_text(encoding="utf-8")[:300].split()[:20])
        asked = requests("generate_until", (passage, {"until": ["."], "max_gen_toks": 16}))
        assert found.lm().generate_until(asked) == local.lm().generate_until(asked)
        load = run_load(found.model, clients=2, requests=4, prompt=32, new=8, seed=0, budget_seconds=60)
        assert len(load.rows) == 4, load.failures
        assert all(0 < row.first_seconds <= row.last_seconds for row in load.rows)
        pids = processes.owners(int(found.model.client.url.split(":")[2].partition("/")[0]))
        assert processes.resident(processes.family(pids)).rss > 20 << 20
