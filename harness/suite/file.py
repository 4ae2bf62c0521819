"""suites/*.yaml -> Suite: what a person writes, found by path or name, read and validated.

Reads with `yaml.safe_load`, validates with pydantic, and reports a mistake with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from harness.errors import BadInput, UnknownName
from harness.suite import mistakes


def unique(names: Sequence[str], what: str, remedy: str = "") -> None:
    """BadInput for a name that is there twice."""
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise BadInput(f"{what} {twice[0]!r} is used twice; names must differ{f'; {remedy}' if remedy else ''}")


_PACKAGED = Path(__file__).parents[1] / "suites"

BUILT_IN = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "suites"
"""Suites that come with the package (or lie beside it in a checkout); `quant-harness run quick` finds them by name."""

DEFAULT_PROBES = ("quantize", "size", "sensitivity", "perplexity", "divergence", "tasks", "memory", "latency", "serving")

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every library takes for a seed."""

Rows = Annotated[int, Field(ge=1, le=1024)]
"""How many sequences are run at once."""


class Calibration(_Strict):
    """What calibrated methods see: `samples` rows of `length` tokens drawn with `seed` from a corpus; None: from the default of
    each model (suite/calibration.py)."""

    corpus: str | dict[str, object] | None = None
    samples: int = Field(default=128, ge=1, le=1 << 16)
    length: int = Field(default=512, ge=8, le=1 << 20)
    seed: Seed = 0


def _number(value: object) -> object:
    """YAML's first edition takes 1e-4 for a text, as nobody means it."""
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?e[+-]?\d+", value, re.IGNORECASE):
        return float(value)
    return value


class Training(_Strict):
    """What methods that train do: `steps` updates, each on `rows` rows of `length` tokens drawn with `seed` from a corpus (None:
    from the default of each model, suite/calibration.py), at a `rate` that rises, and falls to zero; `loss`: cross entropy of the
    text (ce), or divergence from the source model (kl)."""

    corpus: str | dict[str, object] | None = None
    steps: int = Field(default=200, ge=1, le=1 << 20)
    rows: int = Field(default=8, ge=1, le=1024)
    length: int = Field(default=256, ge=8, le=1 << 20)
    rate: Annotated[float, BeforeValidator(_number)] = Field(default=1e-4, gt=0, le=1, allow_inf_nan=False)
    seed: Seed = 0
    loss: Literal["ce", "kl"] = "ce"


class CorpusEntry(_Strict):
    """A text to measure on: a known one, a local file, or a data set of the hub. `window` in tokens; `tokens` limits how many are
    scored. `calibration` names what is kept apart from it to calibrate on: another file, or another split of the data set."""

    corpus: str | None = None
    path: str | None = None
    repo: str | None = None
    config: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None
    calibration: str | None = None
    name: str | None = None
    window: int = Field(default=2048, ge=2)
    tokens: int | None = Field(default=None, ge=2)
    definition: str | None = None


def _margin(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{value:g} is no share of the items: write 0.01 for a margin of 1 point of accuracy")
    return value


def _error_rate(value: float) -> float:
    if not 0 < value < 0.5:
        raise ValueError(f"{value:g} is no error rate: write 0.05 for at most one false verdict in twenty")
    return value


Budget = Literal["fixed", "auto"]
"""How many items of a task a cell is scored on: all (that `limit` leaves), or until the verdict of `probes/sequential.py`."""


def _template(value: bool | str) -> bool | str:
    if isinstance(value, str) and (not value.strip() or value.lower() in _YAML_WORDS):
        right = "chat_template: true" if value.lower() in ("true", "yes", "on", "1") else "chat_template: false"
        raise ValueError(f"{value!r} is a text, so it would be the name of a template; write {right}")
    return value


_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "none", "null", "0", "1")

ChatTemplate = Annotated[StrictBool | StrictStr, AfterValidator(_template)]
"""Whether prompts are a conversation in the words of the tokenizer's chat template, or the name of that template."""


class TaskEntry(_Strict):
    """A task of lm-eval, or of a folder of task YAMLs named by `include`. `budget`, `chat_template`, `system` and `multiturn`
    take the place of the suite's; an empty `system` is none."""

    task: str = Field(min_length=1)
    shots: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    include: str | None = None
    budget: Budget | None = None
    chat_template: ChatTemplate | None = None
    system: str | None = None
    multiturn: StrictBool | None = None


class Latency(_Strict):
    """Shapes to time: each prompt length x batch, generating `new` tokens; `budget` in seconds per shape."""

    prompt: list[Annotated[int, Field(ge=1)]] = Field(default=[128, 512], min_length=1)
    new: int = Field(default=64, ge=2)
    batch: list[Rows] = Field(default=[1], min_length=1)
    budget: float = Field(default=30.0, gt=0, allow_inf_nan=False)


class Memory(_Strict):
    """The declared context of the memory figures, in tokens, and the batch."""

    prompt: int = Field(default=512, ge=1)
    new: int = Field(default=64, ge=1)
    batch: Rows = 1


class Serving(_Strict):
    """How running servers are loaded: so many clients at once, each asking `prompt` + `new` tokens again and again, until
    `requests` are answered or `budget` seconds are spent, for each number of clients."""

    concurrency: list[Annotated[int, Field(ge=1, le=1024)]] = Field(default=[1, 2, 4, 8], min_length=1)
    prompt: int = Field(default=128, ge=1)
    new: int = Field(default=64, ge=2)
    requests: int = Field(default=24, ge=1)
    budget: float = Field(default=60.0, gt=0, allow_inf_nan=False)


class Suite(_Strict):
    """A matrix and what to measure, as written by a person. Lists inside a method's options multiply."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = ""
    models: list[str | dict[str, object]] = Field(min_length=1)
    baseline: str = "bf16"
    bits: list[Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)]] | None = Field(default=None, min_length=1)
    kv: object = None  # checked by suite/kv_axis.py, for a method's own entry as well
    methods: dict[str, dict[str, object] | list[dict[str, object]] | None] = Field(min_length=1)
    include: list[dict[str, object]] = []
    exclude: list[dict[str, object]] = []
    calibration: Calibration = Calibration()
    train: Training = Training()
    corpora: list[str | CorpusEntry] = []
    tasks: list[Annotated[str, Field(min_length=1)] | TaskEntry] = []
    limit: int | None = Field(default=None, ge=1)
    budget: Budget = "fixed"
    chat_template: ChatTemplate = False
    system: str | None = None
    multiturn: StrictBool | None = None
    margin: Annotated[float, AfterValidator(_margin)] = 0.01
    alpha: Annotated[float, AfterValidator(_error_rate)] = 0.05
    beta: Annotated[float, AfterValidator(_error_rate)] = 0.05
    latency: Latency = Latency()
    memory: Memory = Memory()
    serving: Serving = Serving()
    probes: list[str] = Field(default=list(DEFAULT_PROBES), min_length=1)
    device: str = Field(default="auto", pattern=DEVICE)
    seed: Seed = 0
    timeout: float = Field(default=3600.0, gt=0, allow_inf_nan=False, description="seconds for one question")
    quantize_timeout: float = Field(default=14400.0, gt=0, allow_inf_nan=False, description="seconds to quantize one cell")


def find(name: str) -> Path:
    """A suite by path, or by the name of a built-in one. UnknownName with the nearest names when there is none."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        if not path.is_file():
            raise BadInput(f"{path}: no such suite file; built-in suites: {', '.join(built_in())}")
        return path
    if name not in built_in():
        raise UnknownName("suite", name, built_in())
    return BUILT_IN / f"{name}.yaml"


POLICY = "policy.yaml"
"""Lies beside the suites, and is none: what `gate` lets pass."""


def built_in() -> list[str]:
    return sorted(p.stem for p in BUILT_IN.glob("*.yaml") if p.name != POLICY)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteFile:
    """A suite as a person wrote it: what it says, checked, and the line of every key, by which a mistake is shown."""

    path: Path
    suite: Suite
    lines: Mapping[tuple[str | int, ...], int]

    @property
    def folder(self) -> Path:
        """What relative paths in the suite are relative to."""
        return self.path.parent

    def where(self, *keys: str | int) -> str:
        """`suite.yaml, line 7`: the line of a key, or of the longest part of it that is written there."""
        return f"{self.path}, line {mistakes.line_of(self.lines, keys)}"


def load(path: Path) -> SuiteFile:
    """Reads and checks a suite file. BadInput names the file and the line."""
    try:
        raw = path.read_text(encoding="utf-8")
        data = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        tabs = "; indent with blanks, not with tabs" if "\\t" in str(getattr(error, "problem", "")) else ""
        raise BadInput(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}{tabs}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}, line 1: a suite is a mapping with `name`, `models` and `methods`")
    written = yaml.compose(raw, Loader=yaml.SafeLoader)
    if again := mistakes.twice(written):
        key, first, second = again
        both = f", in lines {first} and {second}" if first != second else ""
        raise BadInput(f"{path}, line {second}: {key!r} is written twice{both}; keep one")
    if nameless := mistakes.no_text(written):
        raise BadInput(f"{path}, line {nameless[0]}: {nameless[1]}")
    try:
        return SuiteFile(path=path, suite=Suite.model_validate(data), lines=lines(raw))
    except ValidationError as error:
        wrong = mistakes.sentences(error.errors(), data, lines=lines(raw), path=path, keys=KEYS)
        raise BadInput("\n".join(wrong)) from None


KEYS: Mapping[str, Sequence[str]] = {
    "": tuple(Suite.model_fields),
    "calibration": tuple(Calibration.model_fields),
    "train": tuple(Training.model_fields),
    "corpora.*": tuple(CorpusEntry.model_fields),
    "tasks.*": tuple(TaskEntry.model_fields),
    "latency": tuple(Latency.model_fields),
    "memory": tuple(Memory.model_fields),
    "serving": tuple(Serving.model_fields),
}
"""The keys of every mapping of a suite, by its place as `mistakes.WANTED` writes it."""


def lines(raw: str) -> dict[tuple[str | int, ...], int]:
    """Line number (from 1) of every key and item of a YAML text."""
    places: dict[tuple[str | int, ...], int] = {}

    def walk(node: yaml.Node, keys: tuple[str | int, ...]) -> None:
        places.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = (*keys, key.value)
                places[below] = key.start_mark.line + 1
                walk(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*keys, index))

    node = yaml.compose(raw, Loader=yaml.SafeLoader)
    if node is not None:
        walk(node, ())
    return places
