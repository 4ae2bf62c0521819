"""What `make real` does: a real pretrained model under the suite `real`, and the same cells by each library's own path.

``python -m tests.real_run [--model smollm2|gemma] [--text FILE] [--tasks FOLDER] [--calibration FILE]`` makes the checkpoint
(`tests.real_models`), puts it and the given texts into a copy of suites/real.yaml, runs that as `quant-harness run` does (so it
goes on where it was stopped), and has `tests.methods.library`, which imports nothing of the harness, quantize and answer each
cell once more on the same windows. It prints and writes a table of both, reports/NAME.md, and leaves with 1 where they differ by
more than `SAME`, or than `APART` gives the reason for.

`--text` is UTF-8 text, JSON Lines or Parquet; `hub` takes what suites/real.yaml names from the hub; without it the project's own
held-out prose is measured, which is invented and not what the model was trained on. `--tasks` is a folder of minimal pairs
(*.jsonl with sentence_good and sentence_bad, as BLiMP is published), or `hub`; without it no task is asked.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness import store
from harness.engines.base import load_tokenizer
from harness.errors import BadInput, HarnessError
from harness.files import draft_folder, write_atomically
from harness.models import corpora
from harness.report.cells import OK, CellView
from harness.report.numbers import show, show_interval, with_unit
from harness.report.section import column_display, number
from harness.report.view import View, view
from harness.run import identity, workspace
from harness.spec import Cell, digest
from harness.suite import file, matrix
from harness.suite.plan import Plan
from tests import real_models
from tests.library_paths import Answered, by_library

HUB = "hub"
"""In the place of a path: what suites/real.yaml names, from the hub."""

SAME = 1e-3
"""Distance of the logarithms of two perplexities; and of two divergences in nats, or as a share of those above a nat."""

TOLD: Mapping[str, tuple[str, ...]] = {
    "bf16": (),
    "rtn": ("group_size",),
    "gptq": ("group_size",),
    "awq": ("group_size",),
    "hqq": ("group_size",),
    "bnb": (),
    "torchao": ("type",),
    "quanto": ("type",),
}
"""The options of a cell that the library's side is told; all others are at their defaults on either side."""

APART: Mapping[str, tuple[float, str]] = {
    "hqq": (
        3e-3,
        "its own loader rounds the rotary frequencies to bfloat16; with the source's its answers are the harness's",
    ),
    "awq": (
        3e-2,
        "on a CPU the harness searches in float32 where the library computes in float16, and takes clips from the second moments "
        "of all tokens instead of products with 512 of them (harness/methods/awq.py); SmolLM2 at 4 bits: 38.72 and 39.64",
    ),
}
"""Method -> how far its two paths may be apart in the place of `SAME`, and why."""

PAIR = {"sentence_good", "sentence_bad"}

TASK = """\
# The likelier of two sentences, as lm-eval's blimp tasks ask it; the data lie beside this file.
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
num_fewshot: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a user hands over: '' for nothing, `HUB`, or a path."""

    text: str = ""
    tasks: str = ""
    calibration: str = ""


def suite(model: real_models.Packaged, checkpoint: Path, given: Given, folder: Path) -> Path:
    """The copy of suites/real.yaml for a model and the given texts, written into `folder`."""
    asked: dict[str, Any] = yaml.safe_load((file.BUILT_IN / "real.yaml").read_text(encoding="utf-8"))
    (corpus,) = asked["corpora"]
    asked["name"] = f"real-{model.name}"
    asked["title"] = f"{model.name}, a real pretrained model, dequantized from the file of its package"
    asked["models"] = [{"path": str(checkpoint), "name": model.name}]
    if given.text != HUB:
        asked["corpora"] = [{**corpus, **_corpus(given.text)}]
    if given.calibration == HUB:
        asked["calibration"]["corpus"] = corpus["corpus"]
    elif given.calibration:
        asked["calibration"]["corpus"] = {"path": str(_there(given.calibration, "calibration"))}
    if not given.tasks:
        asked["tasks"] = []
    elif given.tasks != HUB:
        asked["tasks"] = pairs(_there(given.tasks, "tasks"), folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{asked['name']}.yaml"
    write_atomically(target, yaml.safe_dump({k: v for k, v in asked.items() if v is not None}, sort_keys=False))
    return target


def check(given: Given) -> None:
    """BadInput for what a user hands over that is not there, before a model is fetched for it."""
    for what, path in (("text", given.text), ("calibration", given.calibration), ("tasks", given.tasks)):
        if path and path != HUB:
            found = _there(path, what)
            if what == "tasks":
                _files_of_pairs(found)
            else:
                corpora.read(found)


def _corpus(text: str) -> dict[str, Any]:
    """The entry of a text: the suite's is of the hub, and what it names is taken out."""
    if not text:
        return {"corpus": "reference"}
    path = _there(text, "text")
    return {"corpus": None, "path": str(path), "name": f"{path.parent.name}-{path.stem}".lstrip("-")}


def _there(path: str, what: str) -> Path:
    found = Path(path).expanduser().resolve()
    if not found.exists():
        raise BadInput(f"--{what} (docs/real-models.md): no such file or folder: {found}")
    return found


def pairs(source: Path, folder: Path) -> list[dict[str, str]]:
    """A task for each file of minimal pairs in `source`, as entries of a suite. Data of a task lie under its own folder, so they
    are copied, into one that is named by what they are. BadInput where there are none, or where a file holds anything else."""
    files = _files_of_pairs(source)
    tasks = {f"blimp_{path.stem}": path for path in files}
    target = folder / f"pairs-{digest([TASK, {n: corpora.digest(path) for n, path in tasks.items()}])[:12]}"
    if not target.is_dir():
        with draft_folder(target) as draft:
            for name, path in tasks.items():
                shutil.copyfile(path, draft / path.name)
                (draft / f"{name}.yaml").write_text(TASK.format(name=name, data=path.name), encoding="utf-8")
    return [{"task": name, "include": str(target)} for name in tasks]


def _files_of_pairs(source: Path) -> list[Path]:
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else []
    if not files:
        raise BadInput(f"{source}: no folder with *.jsonl files of minimal pairs; BLiMP is published as such files")
    for path in files:
        _check_pairs(path)
    return files


def _check_pairs(path: Path) -> None:
    for count, line in enumerate(path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n"), start=1):
        try:
            item = json.loads(line)
        except ValueError:
            item = None
        if not isinstance(item, dict) or not item.keys() >= PAIR:
            raise BadInput(
                f"{path}, line {count}: no JSON object with {' and '.join(sorted(PAIR))}; take the file out, or mend it"
            )


def run(suite_file: Path, cache: Path) -> int:
    """Runs the suite by the command line, with results/ and reports/ where `make run` has them; returns its exit status."""
    command = [sys.executable, "-m", "harness.cli", "run", str(suite_file), "--cache", str(cache), "--device", "cpu"]
    return subprocess.run(command, check=False).returncode


# ------------------------------------------------------------------------------------------------ the libraries' own paths


Group = dict[str, tuple[str, float, dict[str, Any]]]
"""Cells of one method that see the same calibration text, by label: method, bits, and the options that the library is told."""


def by_libraries(planned: Plan, checkpoint: Path, cache: Path, folder: Path) -> dict[str, Answered | str]:
    """What the libraries' own paths answer, by label of the cell, or why they do not. The cells of a group share two processes;
    what `folder` holds of an earlier call is not made again."""
    tokenizer = load_tokenizer(checkpoint)

    known = identity.gather(planned, cache)  # all of it was fetched by the run

    def ids(text: Path) -> Sequence[int]:
        return corpora.token_ids(tokenizer, corpora.text(text), cache / "tokens")

    asked = next(q for p in planned.cells for q in p.questions if q.probe == "perplexity")
    rows = corpora.windows(ids(known.texts[asked.subject]), asked.options["window"], asked.options["tokens"], asked.subject)
    found: dict[str, Answered | str] = {}
    for one, cells in _groups(planned):
        seen, text = [], known.calibration(one)
        if text is not None:
            wish = one.scheme.options["calibration"]
            drawn = {name: wish[name] for name in ("samples", "length", "seed")}
            seen = corpora.calibration_rows(ids(text), name=wish["corpus"], **drawn)
        inputs = {"rows": rows, "calibration": seen, "cells": cells}
        method = next(iter(cells.values()))[0]
        place = folder / f"{method}-{digest([seen, rows, str(checkpoint)])[:12]}"
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "source").is_symlink():
            (place / "source").symlink_to(checkpoint)
        for name, data in inputs.items():
            (place / f"{name}.json").write_text(json.dumps(data))
        print(f"by {method}'s own path: {', '.join(cells)}", flush=True)
        found |= by_library(place, list(cells))
    return found


def _groups(planned: Plan) -> list[tuple[Cell, Group]]:
    """The cells by method and calibration, each group with one of them."""
    groups: dict[str, tuple[Cell, Group]] = {}
    for cell in (p.cell for p in planned.cells if p.cell.method in TOLD):
        wish = cell.scheme.options.get("calibration")
        told = {name: cell.scheme.options[name] for name in TOLD[cell.method] if name in cell.scheme.options}
        groups.setdefault(digest([cell.method, wish]), (cell, {}))[1][cell.label] = (cell.method, cell.bits, told)
    return list(groups.values())


def table(shown: View, theirs: Mapping[str, Answered | str]) -> tuple[str, bool]:
    """The cells with what the harness measured and what the libraries' own paths answer, in Markdown, and whether all are the
    same. A cell whose harness or library side has no number is not."""
    columns = shown.first(lambda places: places.terminal)
    hows = {c.key: column_display(shown, c) for c in columns}
    lines = [
        "| cell | "
        + " | ".join(column.title for column in columns)
        + " | library's own perplexity | ln ratio | library's own KL |",
        "|---" * (len(columns) + 4) + "|",
    ]
    good = True
    for cell in shown.cells:
        entries = []
        for column in columns:
            value, how = cell.values[column.key], hows[column.key]
            if value.status != OK:
                entries.append(value.status)
                continue
            between = show_interval(value.low, value.high, column.metric.unit, how, value=value.value)
            entries.append(with_unit(number(column, value, how), how) + (f" ({between})" if between else ""))
        beside, fine = _beside(shown, cell, theirs.get(cell.label))
        good = good and fine
        lines.append("| " + " | ".join([cell.label, *entries, *beside]) + " |")
    told = [f"- {grid.warning(model)}" for model, grid in shown.source_grids.items()]
    told += [f"- {method}: up to {far:g} apart: {why}" for method, (far, why) in APART.items() if method in shown.methods]
    return "\n".join([f"# {shown.title}", "", *lines, "", *told]) + "\n", good


def _beside(shown: View, cell: CellView, own: Answered | str | None) -> tuple[list[str], bool]:
    """What a library's own path answers beside a cell, and whether the two are the same."""
    if own is None:
        return ["not asked"] * 3, True
    if isinstance(own, str):
        return [own.replace("|", "/"), "", ""], False
    said = [show(own.perplexity, "1"), "", show(own.kl, "nat")]
    perplexity, kl = (_value(shown, cell, metric) for metric in ("perplexity", "kl_mean"))
    if perplexity is None or kl is None:
        return said, False
    ratio = math.log(perplexity / own.perplexity)
    allowed = APART[cell.cell.method][0] if cell.cell.method in APART else SAME
    same = abs(ratio) <= allowed and abs(kl - own.kl) <= allowed * max(1.0, own.kl)
    said[1] = f"{ratio:+.1e}{'' if same else f' (one of the two is over {allowed:g})'}"
    return said, same


def _value(shown: View, cell: CellView, metric: str) -> float | None:
    column = shown.column(metric)
    value = None if column is None else cell.values[column.key]
    return value.value if value is not None and value.status == OK else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="smollm2 or gemma")
    for name in ("text", "tasks", "calibration"):
        parser.add_argument(f"--{name}", default="", help="a path, or hub")
    asked = parser.parse_args()
    given = Given(text=asked.text, tasks=asked.tasks, calibration=asked.calibration)
    cache = workspace.default_cache().expanduser().resolve()
    try:
        check(given)
        checkpoint = real_models.checkpoint(asked.model, cache)
        model = real_models.MODELS[asked.model]
        suite_file = suite(model, checkpoint, given, cache / "real" / "suites")
        status = run(suite_file, cache)
        if status:
            return status
        planned = matrix.plan(suite_file, device="cpu", cache=cache)
        theirs = by_libraries(planned, checkpoint, cache, cache / "real" / "libraries" / model.name)
        said, good = table(view(store.read(Path("results") / planned.suite.name)), theirs)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    page = Path("reports") / f"{planned.suite.name}.md"
    page.write_text(said, encoding="utf-8")
    print(said, f"table    {page}", sep="\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
