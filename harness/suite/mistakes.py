"""A mistake in a suite -> one sentence: the line, what is written there, and the nearest right spelling.

pydantic finds the mistakes; its own texts speak of types and of arms of unions, which mean nothing to the author of a YAML file.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic_core import ErrorDetails

Place = tuple[str | int, ...]

_UNION_ARMS = {"str", "bool", "CorpusEntry", "TaskEntry", "dict[str,any]", "list[dict[str,any]]", "constrained-str", "none"}
"""What pydantic puts into an error's place for each arm of a union; people know nothing of them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What belongs under a key, and how it is written."""

    what: str
    example: str


WANTED: dict[str, Wanted] = {
    "name": Wanted("a name of at most 64 letters, digits, dots and dashes, a letter or digit first", "name: mine"),
    "title": Wanted("a text", "title: My model on my laptop"),
    "models": Wanted("a list of models", "models: [reference]"),
    "models.*": Wanted("a model", "models: [reference, {path: ./my-model}]"),
    "baseline": Wanted("the label of a cell", "baseline: bf16"),
    "bits": Wanted("a list of bit widths", "bits: [8, 4, 3]"),
    "bits.*": Wanted("a bit width above 0", "bits: [8, 4, 3]"),
    "kv": Wanted("types of keys and values", "kv: [bf16, int8]"),
    "methods": Wanted("a mapping of methods to their options", "methods: {bf16: , gptq: {group_size: 64}}"),
    "methods.*": Wanted("a mapping of options, or a list of such mappings", "gptq: {group_size: 64}"),
    "include": Wanted("a list of cells", "include: [{method: gptq, bits: 4}]"),
    "include.*": Wanted("a cell", "include: [{method: gptq, bits: 4}]"),
    "exclude.*": Wanted("a pattern of cells", "exclude: [{method: gptq, bits: 2}]"),
    "exclude": Wanted("a list of patterns of cells", "exclude: [{method: gptq, bits: 2}]"),
    "calibration": Wanted("a mapping", "calibration: {samples: 128, length: 512}"),
    "calibration.corpus": Wanted("a text to calibrate on", "corpus: {path: ./my-text.txt}"),
    "calibration.samples": Wanted("a whole number from 1 to 65536", "samples: 128"),
    "calibration.length": Wanted("a whole number of tokens from 8 to 1048576", "length: 512"),
    "calibration.seed": Wanted("a whole number from 0 to 4294967295", "seed: 0"),
    "train": Wanted("a mapping", "train: {steps: 200, rows: 8, length: 256, rate: 0.0001}"),
    "train.corpus": Wanted("a text to train on", "corpus: {path: ./my-text.txt}"),
    "train.steps": Wanted("a whole number from 1 to 1048576", "steps: 200"),
    "train.rows": Wanted("a whole number from 1 to 1024", "rows: 8"),
    "train.length": Wanted("a whole number of tokens from 8 to 1048576", "length: 256"),
    "train.rate": Wanted("a number above 0 and at most 1", "rate: 0.0001"),
    "train.seed": Wanted("a whole number from 0 to 4294967295", "seed: 0"),
    "train.loss": Wanted("ce or kl", "loss: kl"),
    "corpora": Wanted("a list of texts", "corpora: [{path: ./my-text.txt}]"),
    "corpora.*": Wanted("a text", "corpora: [{path: ./my-text.txt}]"),
    "corpora.*.corpus": Wanted("the name of a known text", "corpus: wikitext2"),
    "corpora.*.path": Wanted("a file or a folder", "path: ./my-text.txt"),
    "corpora.*.repo": Wanted("a data set of the hub", "repo: OWNER/NAME"),
    "corpora.*.config": Wanted("the name of a configuration", "config: default"),
    "corpora.*.split": Wanted("the name of a split", "split: test"),
    "corpora.*.column": Wanted("the name of a column", "column: text"),
    "corpora.*.revision": Wanted("a branch, a tag or a commit, as a text", 'revision: "main"'),
    "corpora.*.calibration": Wanted("another file or another split", "calibration: train"),
    "corpora.*.name": Wanted("a text", "name: mine"),
    "corpora.*.definition": Wanted("a definition of perplexity", "definition: gptq-2048"),
    "corpora.*.window": Wanted("a whole number of at least 2 tokens", "window: 2048"),
    "corpora.*.tokens": Wanted("a whole number of at least 2 tokens", "tokens: 65536"),
    "tasks": Wanted("a list of tasks", "tasks: [arc_easy]"),
    "tasks.*": Wanted("a task", "tasks: [{task: arc_easy, limit: 500}]"),
    "tasks.*.task": Wanted("the name of a task", "task: arc_easy"),
    "tasks.*.shots": Wanted("a whole number of at least 0", "shots: 5"),
    "tasks.*.limit": Wanted("a whole number of at least 1", "limit: 500"),
    "tasks.*.include": Wanted("a folder", "include: ./my-tasks"),
    "tasks.*.budget": Wanted("fixed or auto", "budget: auto"),
    "tasks.*.chat_template": Wanted("true, false or the name of a template", "chat_template: true"),
    "tasks.*.system": Wanted("a text", "system: You are a helpful assistant."),
    "tasks.*.multiturn": Wanted("true or false", "multiturn: true"),
    "limit": Wanted("a whole number of at least 1", "limit: 500"),
    "budget": Wanted("fixed or auto", "budget: auto"),
    "chat_template": Wanted("true, false or the name of a template", "chat_template: true"),
    "system": Wanted("a text", "system: You are a helpful assistant."),
    "multiturn": Wanted("true or false", "multiturn: true"),
    "margin": Wanted("a number", "margin: 0.01"),
    "alpha": Wanted("a number", "alpha: 0.05"),
    "beta": Wanted("a number", "beta: 0.05"),
    "latency": Wanted("a mapping", "latency: {prompt: [128, 512], new: 64, batch: [1]}"),
    "latency.prompt": Wanted("a list of token counts", "prompt: [128, 512]"),
    "latency.prompt.*": Wanted("a number of tokens of at least 1", "prompt: [128, 512]"),
    "latency.new": Wanted("a whole number of at least 2", "new: 64"),
    "latency.batch": Wanted("a list of batch sizes", "batch: [1, 8]"),
    "latency.batch.*": Wanted("a batch size from 1 to 1024", "batch: [1, 8]"),
    "latency.budget": Wanted("a number of seconds above 0", "budget: 30"),
    "memory": Wanted("a mapping", "memory: {prompt: 512, new: 64, batch: 1}"),
    "memory.prompt": Wanted("a whole number of at least 1", "prompt: 512"),
    "memory.new": Wanted("a whole number of at least 1", "new: 64"),
    "memory.batch": Wanted("a whole number from 1 to 1024", "batch: 1"),
    "serving": Wanted("a mapping", "serving: {concurrency: [1, 4], requests: 24}"),
    "serving.concurrency": Wanted("a list of client counts", "concurrency: [1, 2, 4, 8]"),
    "serving.concurrency.*": Wanted("a whole number from 1 to 1024", "concurrency: [1, 2, 4, 8]"),
    "serving.prompt": Wanted("a whole number of at least 1", "prompt: 128"),
    "serving.new": Wanted("a whole number of at least 2", "new: 64"),
    "serving.requests": Wanted("a whole number of at least 1", "requests: 24"),
    "serving.budget": Wanted("a number of seconds above 0", "budget: 60"),
    "probes": Wanted("a list of probes", "probes: [size, perplexity, tasks]"),
    "probes.*": Wanted("the name of a probe", "probes: [size, perplexity, tasks]"),
    "device": Wanted("auto, cpu, cuda or cuda:N", "device: cuda"),
    "seed": Wanted("a whole number from 0 to 4294967295", "seed: 0"),
    "timeout": Wanted("a number of seconds above 0", "timeout: 3600"),
    "quantize_timeout": Wanted("a number of seconds above 0", "quantize_timeout: 14400"),
}
"""By place; `*` stands for an item of a list or a name that the author chose."""

_ELSEWHERE = {
    "group_size": "an option of a method: methods: {gptq: {group_size: 64}}",
    "sym": "an option of a method: methods: {gptq: {sym: true}}",
    "model": "written under models: models: [reference]",
    "method": "written under methods: methods: {bf16: , gptq: }",
    "window": "a setting of a text: corpora: [{path: ./my-text.txt, window: 2048}]",
    "tokens": "a setting of a text: corpora: [{path: ./my-text.txt, tokens: 65536}]",
    "corpus": "written under corpora: corpora: [wikitext2]",
    "dataset": "written under corpora: corpora: [wikitext2]",
    "shots": "a setting of a task: tasks: [{task: arc_easy, shots: 5}]",
    "system_instruction": "called system, of a suite or of a task: system: You are a helpful assistant.",
    "num_fewshot": "called shots, and a setting of a task: tasks: [{task: arc_easy, shots: 5}]",
    "samples": "a setting of calibration: calibration: {samples: 128}",
    "steps": "a setting of train: train: {steps: 200}",
    "rate": "a setting of train: train: {rate: 0.0001}",
    "length": "a setting of calibration: calibration: {length: 512}",
    "prompt": "a setting of latency: latency: {prompt: [128, 512]}",
    "batch": "a setting of latency: latency: {batch: [1, 8]}",
    "batch_size": "called batch, and a setting of latency: latency: {batch: [1, 8]}",
    "path": "a setting of a model or a text: models: [{path: ./my-model}]",
}
"""Keys that people write at the top of a suite, and where they belong."""

_BELOW = {
    ("calibration", "path"): "a file is written corpus: {path: ./my-text.txt}",
    ("calibration", "repo"): "a data set of the hub is written corpus: {repo: OWNER/NAME, split: train}",
    ("train", "path"): "a file is written corpus: {path: ./my-text.txt}",
    ("train", "repo"): "a data set of the hub is written corpus: {repo: OWNER/NAME, split: train}",
}
"""Keys that people write one step too high, by the place and the key."""


def sentences(
    errors: Iterable[ErrorDetails], data: object, *, lines: Mapping[Place, int], path: Path, keys: Mapping[str, Sequence[str]]
) -> list[str]:
    """One sentence for each mistake. `data`: the suite as YAML has it. `lines`: the line of each place. `keys`: the keys that
    each mapping of a suite may have, by its place (the suite itself has none)."""
    by_place: dict[Place, ErrorDetails] = {}
    for error in errors:
        by_place.setdefault(tuple(part for part in error["loc"] if part not in _UNION_ARMS), error)
    # Each arm of a union complains. The arm that went deepest is the one that the author meant.
    deepest = [place for place in by_place if not any(other[: len(place)] == place != other for other in by_place)]
    return [f"{path}, line {line_of(lines, place)}: {_sentence(place, by_place[place], data, keys)}" for place in deepest]


def below(parent: Place, errors: Iterable[ErrorDetails], data: object, *, keys: Mapping[str, Sequence[str]]) -> list[str]:
    """The sentences of mistakes in a mapping that stands somewhere else than under `parent`, by whose rules it is read. `data`
    holds it there."""
    said: dict[Place, str] = {}
    for error in errors:
        place = (*parent, *(part for part in error["loc"] if part not in _UNION_ARMS))
        said.setdefault(place, _sentence(place, error, data, keys))
    return list(said.values())


def _sentence(place: Place, error: ErrorDetails, data: object, keys: Mapping[str, Sequence[str]]) -> str:
    key, own = ".".join(map(str, place)), _pattern(place)
    if error["type"] == "extra_forbidden":
        return _unknown(str(place[-1]), _pattern(place[:-1]), keys)
    wanted = WANTED.get(own)
    if error["type"] == "missing":
        return f"{key} is missing; write {wanted.example if wanted else key}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" or wanted is None:
        return f"{key}: {message}"
    value = _value(data, place)
    if value == []:
        return f"{key}: [] is an empty list; write {wanted.example}, or take `{place[-1]}` out"
    right = _respelt(own, place, value)
    return f"{key}: {shown(value)} is not {wanted.what}; write {right or wanted.example}"


def _unknown(key: str, parent: str, keys: Mapping[str, Sequence[str]]) -> str:
    known = sorted(keys.get(parent, ()))
    below = f" under {parent.removesuffix('.*')}" if parent else ""
    lower = key.lower().replace("-", "_")
    if elsewhere := _BELOW.get((parent, lower)):
        return f"unknown key {key!r}{below}; {elsewhere}"
    near = [lower] if lower in known else difflib.get_close_matches(lower, known, n=1, cutoff=0.6)
    if near:
        return f"unknown key {key!r}{below}; did you mean {near[0]!r}?"
    if not parent and lower in _ELSEWHERE:
        return f"unknown key {key!r}; it is {_ELSEWHERE[lower]}"
    return f"unknown key {key!r}{below}; known: {', '.join(known)}"


def _pattern(place: Place) -> str:
    """A place as `WANTED` names it."""
    parts = ["*" if isinstance(part, int) else part for part in place]
    if parts[:1] == ["methods"] and len(parts) > 1:
        parts = ["methods", "*"]
    return ".".join(parts)


def _value(data: object, place: Place) -> object:
    for part in place:
        if not isinstance(data, (Mapping, list)):
            return None
        try:
            data = data[part]  # type: ignore[index]  # a list is asked for a name where the author mixed them up
        except (LookupError, TypeError):
            return None
    return data


def shown(value: object) -> str:
    """The value as the author wrote it, about."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _respelt(own: str, place: Place, value: object) -> str | None:
    """What the author means, written right; None where that cannot be told."""
    key = str(place[-1])
    if own == "device":
        return _device(value)
    if own == "methods" and isinstance(value, list) and all(isinstance(name, str) for name in value):
        return f"methods: {{{', '.join(f'{name}: ' for name in value)}}}"
    if own == "name":
        name = "" if value is None else re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)).strip("-._")[:64]
        if not name:
            return None
        return f'name: "{name}"' if not re.search(r"[A-Za-z]", name) else f"name: {name}"
    if own in ("bits", "bits.*", "latency.prompt", "latency.batch", "serving.concurrency"):
        numbers = [n for n in re.findall(r"(?<![-\d.])\d+(?:\.\d+)?", json.dumps(value, default=str)) if float(n) > 0]
        return f"{'bits' if own == 'bits.*' else key}: [{', '.join(numbers)}]" if numbers else None
    if own in ("include.*", "exclude.*") and isinstance(value, str) and re.fullmatch(r"[\w-]+", value):
        return f"{place[0]}: [{{method: {value}}}]"
    if WANTED[own].what.startswith("a whole number") and (number := _whole(value)):
        return f"{key}: {number}"
    if own in ("models", "tasks", "corpora", "probes") and isinstance(value, str) and value:
        return f"{key}: [{', '.join(re.split(r'[,; ]+', value.strip()))}]"
    if own in ("include", "exclude", "models", "tasks", "corpora") and isinstance(value, dict):
        return f"{key}: [{yaml.safe_dump(value, default_flow_style=True, width=1000).strip()}]"
    return None


def _whole(value: object) -> int | None:
    """The whole number above 0 that a text or a float means; None where it means none."""
    try:
        number = float(value) if isinstance(value, (str, float)) else 0.0
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 < number < 1 << 53 else None


def _device(value: object) -> str | None:
    text = str(value).lower()
    number = re.search(r"\d+", text)
    if "cuda" in text or "gpu" in text:
        return f"device: cuda{f':{number[0]}' if number else ''}"
    return "device: cpu" if "cpu" in text else None


def bits_meant(value: object) -> str | None:
    """The bit width that a text such as "4", "int4" or "4bit" means, as it is written; None where it means none."""
    numbers = re.findall(r"\d+(?:\.\d+)?", value) if isinstance(value, str) else []
    return numbers[0] if len(numbers) == 1 else None


def twice(node: yaml.Node | None) -> tuple[str, int, int] | None:
    """The first key that a mapping holds twice, with both lines (from 1): YAML would keep the second without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    return key.value, seen[key.value], line
                seen[key.value] = line
            if below := twice(value):
                return below
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if below := twice(item):
                return below
    return None


def no_text(node: yaml.Node | None, place: Place = ()) -> tuple[int, str] | None:
    """(line, sentence) of the first key that is no text: YAML takes `null`, `5` and `yes` for something else."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                said = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                wanted = WANTED.get(".".join(map(str, place)))
                instead = f"a name{f', as in {wanted.example}' if wanted else ''}"
                return key.start_mark.line + 1, f"the key {said} is no text; write {instead}"
            if below := no_text(value, (*place, key.value)):
                return below
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if below := no_text(item, (*place, "*")):
                return below
    return None


def line_of(lines: Mapping[Place, int], place: Sequence[str | int]) -> int:
    """Line of the longest known prefix of a place."""
    for length in range(len(place), -1, -1):
        if tuple(place[:length]) in lines:
            return lines[tuple(place[:length])]
    return 1
