"""Instruct models asked as they are served, against lm-eval's `hf` with the same flags."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness import spec
from harness.engines.endpoint import Endpoint
from harness.engines.transformers import Transformers
from harness.errors import BadInput, UnknownName, Unsupported
from harness.models import chat
from harness.probes.prompting import Prompting, build
from harness.probes.tasks import PROBE
from harness.runtimes.openai_server import SAMPLE, Server
from harness.scoring.chat import Conversations, told_the_day
from harness.spec import Answer, Measurement, Scheme
from tests.instruct import CHATML, DATED, INST, NO_SYSTEM, TASKS, TOKENIZERS, lm_evals_own, question, words, write_tasks
from tests.openai_server import NAME, Served
from tests.tiny_llama import TinySession, llama

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch", "ignore::FutureWarning"
)

TODAY = "2026-11-29"
SYSTEM = "You know which bridge was crossed."


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # lm-eval's
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


def model(**changes: Any) -> Any:
    return llama(**{"max_position_embeddings": 512, **changes})


def asked(tokenizer: Any, template: bool | str = True, *, multiturn: bool = True, system: str | None = None) -> Prompting:
    own = Prompting(template=template, multiturn=multiturn, system=system)
    return own.of(chat.chosen(chat.of_tokenizer(tokenizer), template, "model"), TODAY) if template else own


@contextmanager
def transformers_engine(tokenizer: Any, folder: Path) -> Iterator[Any]:
    yield Transformers(model(), tokenizer)


@contextmanager
def llamacpp_engine(tokenizer: Any, folder: Path) -> Iterator[Any]:
    for package in ("llama_cpp", "gguf"):
        pytest.importorskip(package, reason=f"{package} is not installed (it compiles for minutes): pip install -e '.[gguf]'")
    engine: Any = importlib.import_module("harness.engines.llamacpp")
    runtime: Any = importlib.import_module("harness.runtimes.llama_cpp")
    export, vocabulary = (importlib.import_module(f"harness.formats.gguf_{name}") for name in ("export", "vocabulary"))
    model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sample = vocabulary.SAMPLE
    export.convert(folder, folder / "m.gguf", dtype="F32", same_ids=lambda path, ids: runtime.same_ids(path, sample, ids))
    yield engine.LlamaCpp(runtime.Weights(folder / "m.gguf", kv_type="f32"), tokenizer, model_dir=folder)


@contextmanager
def openvino_engine(tokenizer: Any, folder: Path) -> Iterator[Any]:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install -e '.[openvino]'")
    from tests.methods import openvino_cells

    model().half().float().save_pretrained(folder / "source")  # the values that its 16 bits hold
    tokenizer.save_pretrained(folder / "source")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of what it traces
        openvino_cells.quantize(folder, "16")
    yield openvino_cells.load(folder, "16", folder / "artifacts" / "16", execution="accuracy")


@contextmanager
def endpoint_engine(tokenizer: Any, folder: Path) -> Iterator[Any]:
    model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with Served(model(), tokenizer) as server:
        origin = spec.Served(scheme=Scheme(method="endpoint", bits=4.0), url=server.url, model=NAME)
        yield Endpoint(Server(origin, tokenizer), model_dir=folder)
        texts = {body["prompt"] for body in server.asked if isinstance(body["prompt"], str)}
        assert texts <= {SAMPLE}, "what a template writes is tokenized here"
        assert len(server.asked) > 50


ENGINES = {
    "transformers": transformers_engine,
    "llamacpp": llamacpp_engine,
    "openvino": openvino_engine,
    "endpoint": endpoint_engine,
}


def measured(answer: Answer, metric: str = "accuracy") -> Measurement:
    return next(m for m in answer.measurements if m.metric == metric)


def check_items(asked_in: TinySession, answer: Answer, wanted: dict[str, Any], task: str, *, rounded: bool = False) -> None:
    """The answers of a session against lm-eval's samples, item by item. `rounded`: the engine computes in other roundings than
    torch, so that the better of two choices that are as good may be another one."""
    accuracy = measured(answer)
    own = wanted["results"][task]
    assert rounded or accuracy.value == own.get("acc,none", own.get("exact_match,none"))
    kept = json.loads(asked_in.blobs[str(accuracy.blob)])["items"]
    for item, sample in zip(kept, wanted["samples"][task], strict=True):
        assert item["id"] == sample["doc_hash"][:16]
        assert rounded or item["correct"] == sample.get("acc", sample.get("exact_match"))
        if "acc" in sample:
            likelihoods = [responses[0][0] for responses in sample["resps"]]
            assert item["loglikelihoods"] == pytest.approx(likelihoods, rel=3e-3 if rounded else 1e-4)


def theirs(
    name: str, tasks: Path, folder: Path, *, half: bool = False, multiturn: bool, system: str | None = None
) -> dict[str, Any]:
    """What lm-eval's `hf` answers to all tasks. `half`: a model whose weights are those that 16 bits hold."""
    own = model().half().float() if half else model()
    lm = HFLM(pretrained=own, tokenizer=words(name), batch_size=4)
    flags: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn, "system_instruction": system}
    return lm_evals_own(tasks, folder / "theirs", lm, *TASKS, **flags)


FLAGS: dict[str, dict[str, Any]] = {
    "examples as turns": {"multiturn": True},
    "examples in one turn": {"multiturn": False},
    "a system message": {"multiturn": True, "system": SYSTEM},
}


@pytest.mark.slow  # lm-eval's own command takes seconds for each set of flags
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_equal_lm_evals_hf_with_the_same_flags(name: str, flags: str, tasks: Path, tmp_path: Path) -> None:
    wanted = theirs(name, tasks, tmp_path, **FLAGS[flags])
    engine = Transformers(model(), words(name))
    for task in TASKS:
        session = TinySession(engine, tmp_path, tasks=tasks)
        answer = PROBE.measure(session, question(task, asked(words(name), **FLAGS[flags])))
        check_items(session, answer, wanted, task)


@pytest.mark.slow  # a file is converted, a graph is compiled
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "transformers"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_engine_is_asked_the_same_conversation(name: str, engine: str, tasks: Path, tmp_path: Path) -> None:
    how = FLAGS["a system message"]
    rounded = engine == "openvino"
    with ENGINES[engine](words(name), tmp_path) as loaded:
        wanted = theirs(name, tasks, tmp_path, half=rounded, **how)
        for task in TASKS:
            session = TinySession(loaded, tmp_path, tasks=tasks)
            answer = PROBE.measure(session, question(task, asked(words(name), **how)))
            check_items(session, answer, wanted, task, rounded=rounded)


def prompts(
    name: str, tasks: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, how: Prompting, **changes: Any
) -> list[list[int]]:
    """The ids that a model is asked for the items of the task `said`."""
    engine = Transformers(model(), words(name, **changes))
    lm = engine.lm()
    seen: list[list[int]] = []

    def noted(ids: list[list[int]], _: Any) -> list[list[int]]:
        seen.extend(ids)
        return [[5] for _ in ids]

    monkeypatch.setattr(lm, "_generate", noted)
    PROBE.measure(TinySession(engine, folder, tasks=tasks), question("said", how))
    return seen


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_conversation_begins_with_one_bos_or_none(
    name: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bos = 1
    with_template = prompts(name, tasks, tmp_path, monkeypatch, asked(words(name)))
    assert with_template
    for ids in with_template:
        assert ids[:1] == ([bos] if name == "inst" else words(name)("<|im_start|>")["input_ids"])
        assert ids[1] != bos
    without = prompts(name, tasks, tmp_path, monkeypatch, Prompting())
    assert {ids[0] == bos for ids in without} == {name == "inst"}


def test_a_system_text_without_a_template_stands_before_the_prompt_as_in_lm_eval(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = prompts("inst", tasks, tmp_path, monkeypatch, Prompting())
    with_text = prompts("inst", tasks, tmp_path, monkeypatch, Prompting(system=SYSTEM))
    said = words("inst")
    assert [said.decode(ids) for ids in with_text] == [f"<s>{SYSTEM}{said.decode(ids[1:])}" for ids in plain]


def test_the_name_of_a_template_chooses_it(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"default": INST, "short": "{{ bos_token }}{{ messages[-1]['content'] }} ="}
    named = asked(words("inst", chat_template=both), "short")
    assert named.digest != asked(words("inst", chat_template=both)).digest
    seen = prompts("inst", tasks, tmp_path, monkeypatch, named, chat_template=both)
    assert all(words("inst").decode(ids).endswith(" =") for ids in seen)


def test_the_definition_tells_template_turns_and_system_message(tasks: Path, tmp_path: Path) -> None:
    engine = Transformers(model(), words("inst"))

    def definition(how: Prompting, shots: int = 2) -> str:
        return measured(PROBE.measure(TinySession(engine, tmp_path, tasks=tasks), question("asked", how, shots=shots))).definition

    own = asked(words("inst"))
    digest = own.digest[:12]
    assert definition(Prompting()) == "lm-eval asked v1.0 acc, 2-shot"
    assert definition(own) == f"lm-eval asked v1.0 acc, 2-shot, chat template {digest}, examples as turns"
    assert definition(own, shots=0) == f"lm-eval asked v1.0 acc, 0-shot, chat template {digest}"
    folded = asked(words("inst"), multiturn=False, system=SYSTEM)
    assert definition(folded).startswith(
        f"lm-eval asked v1.0 acc, 2-shot, chat template {digest}, examples in one turn, system message "
    )
    assert ", system text " in definition(Prompting(system=SYSTEM))


def test_a_template_that_takes_no_system_message_loses_the_description_and_says_so(tasks: Path, tmp_path: Path) -> None:
    engine = Transformers(model(), words("inst", chat_template=NO_SYSTEM))
    how = asked(engine.tokenizer)
    answer = PROBE.measure(TinySession(engine, tmp_path, tasks=tasks), question("asked", how))
    assert answer.facts["notes"] == ["asked: the chat template takes no system message, so the task's description is left out"]
    assert "notes" not in PROBE.measure(TinySession(engine, tmp_path, tasks=tasks), question("said", how)).facts
    with pytest.raises(BadInput, match="leaves the system message out, so that `system` would change nothing"):
        PROBE.measure(TinySession(engine, tmp_path, tasks=tasks), question("said", asked(engine.tokenizer, system=SYSTEM)))


def test_a_tokenizer_with_another_template_than_was_planned_is_refused(tasks: Path, tmp_path: Path) -> None:
    engine = Transformers(model(), words("inst", chat_template=NO_SYSTEM))
    with pytest.raises(BadInput, match="was loaded with another chat template"):
        PROBE.measure(TinySession(engine, tmp_path, tasks=tasks), question("said", asked(words("inst"))))


def test_a_conversation_that_the_template_refuses_is_unsupported() -> None:
    chats = Conversations(tokenizer=words("inst"))
    with pytest.raises(Unsupported, match="refuses a conversation of user, user: roles must alternate"):
        chats([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def test_whole_documents_are_no_conversation(tmp_path: Path) -> None:
    rolling = """
task: read
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
metadata: {version: 1.0}
"""
    folder = write_tasks(tmp_path / "tasks", read=rolling)
    engine = Transformers(model(), words("inst"))
    plain, chats = (
        PROBE.measure(TinySession(engine, tmp_path, tasks=folder), question("read", how, shots=0))
        for how in (Prompting(), asked(words("inst")))
    )
    assert plain.measurements == chats.measurements


def test_a_template_that_asks_for_the_date_is_told_that_of_the_run() -> None:
    tokenizer = words("inst", chat_template=DATED)
    assert asked(tokenizer).day == TODAY
    assert asked(words("inst")).day == ""
    chats = Conversations(tokenizer=tokenizer)
    turns = [{"role": "user", "content": "a"}]
    with told_the_day("2001-02-03"):
        assert chats(turns).startswith("<s>Today is 03 February 2001.")
    assert "2001" not in chats(turns)


def test_templates_are_read_from_files_as_transformers_reads_them(tmp_path: Path) -> None:
    import transformers

    kinds: list[Any] = [CHATML, {"default": INST, "short": NO_SYSTEM}, {"one": CHATML, "other": INST}, None]
    for number, template in enumerate(kinds):
        for jinja in (True, False):
            folder = tmp_path / f"{number} {jinja}"
            words("inst", chat_template=template).save_pretrained(folder, save_jinja_files=jinja)
            loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
            assert chat.in_folder(folder) == chat.of_tokenizer(loaded), (template, jinja)
    with pytest.raises(UnknownName, match="unknown chat template 'shrt'; did you mean 'short'"):
        chat.chosen(chat.in_folder(tmp_path / "1 True"), "shrt", "model 'x'")
    with pytest.raises(BadInput, match="several chat templates and no default one; name it: chat_template: one or other"):
        chat.chosen(chat.in_folder(tmp_path / "2 True"), True, "model 'x'")
    with pytest.raises(BadInput, match="model 'x': its tokenizer has no chat template"):
        chat.chosen(chat.in_folder(tmp_path / "3 True"), True, "model 'x'")


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(BadInput, match="the chat template cannot be read"):
        chat.in_folder(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{broken")
    assert chat.in_folder(tmp_path) == {}


def test_why_a_template_takes_no_system_message_is_known_without_its_tokenizer() -> None:
    assert chat.leaves_out(CHATML, SYSTEM) is None
    assert chat.leaves_out(INST, SYSTEM) is None
    assert chat.leaves_out(NO_SYSTEM, SYSTEM) == "it says: System role not supported"
    assert chat.leaves_out("{{ messages[-1]['content'] }}", SYSTEM) == "it leaves it out"
    assert chat.leaves_out("{{ raise_exception('never') }}", SYSTEM) is None


def test_lm_eval_writes_down_the_name_of_a_template_and_applies_the_default_one() -> None:
    """Why a named template here is compared with lm-eval's `chat_template_args`, and not with the flag's own value."""
    both = {"default": INST, "short": "{{ bos_token }}{{ messages[-1]['content'] }} ="}
    turns = [{"role": "user", "content": "a"}]
    tokenizer = words("inst", chat_template=both)
    plain = HFLM(pretrained=model(), tokenizer=tokenizer)
    assert plain.chat_template("short") == both["short"]
    assert plain.apply_chat_template(turns) == "<s>[INST] a [/INST]"
    named = HFLM(pretrained=model(), tokenizer=tokenizer, chat_template_args={"chat_template": both["short"]})
    ours = Conversations(tokenizer=tokenizer, arguments={"chat_template": both["short"]})
    assert ours(turns) == named.apply_chat_template(turns) == "<s>a ="


def test_a_server_that_takes_text_is_asked_a_conversation_that_begins_with_its_bos(tasks: Path, tmp_path: Path) -> None:
    def answer(name: str, **kind: Any) -> Answer:
        model().save_pretrained(tmp_path / name)
        words(name).save_pretrained(tmp_path / name)
        with Served(model(), words(name), **kind) as server:
            origin = spec.Served(scheme=Scheme(method="endpoint", bits=4.0), url=server.url, model=NAME)
            loaded: Any = Endpoint(Server(origin, words(name)), model_dir=tmp_path / name)
            return PROBE.measure(TinySession(loaded, tmp_path, tasks=tasks), question("said", asked(words(name))))

    by_ids, as_text = answer("inst"), answer("inst", by_ids=False, adds_bos=True, names_ids=False)
    assert as_text.measurements == by_ids.measurements
    with pytest.raises(Unsupported, match="a special token at the beginning of a request is no text"):
        answer("chatml", by_ids=False, names_ids=False)


def test_a_task_that_makes_its_prompts_in_its_own_way_is_unsupported() -> None:
    class Own:
        OUTPUT_TYPE = "multiple_choice"
        instances = (Instance(request_type="loglikelihood", doc={}, arguments=("Which city?", " a"), idx=0),)

        def build_all_requests(self, **_: object) -> None:
            """Its prompts are what they are."""

    mine: Any = {"mine": Own()}
    with pytest.raises(Unsupported, match="task 'mine' makes its prompts without a chat template"):
        build(mine, asked(words("inst")), words("inst"), None)
    with pytest.raises(Unsupported, match="task 'mine' makes its prompts without a system text"):
        build(mine, Prompting(system=SYSTEM), None, None)
    assert build(mine, Prompting(), None, None) == []
