"""What a quantization method is to the harness: one frozen `Method`, listed in `methods.METHODS`.

A method file imports nothing but the standard library and `harness` at its top: the libraries it wraps are imported inside
`quantize` and `load`, which run in child processes. `plan` and `methods` read these tables without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor, WeightKind
from harness.methods import _defaults
from harness.spec import Json, OptionValue, Origin, OriginKind, Running, Scheme

Kernel = Literal["real", "slow", "simulated", "none"]
"""What answers at run time: `real` = kernel on packed weights; `slow` = packed weights, dequantized on each call;
`simulated` = weights held in 16 bits or wider, so size, memory and speed are not those of the scheme; `none` = cannot run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that a library takes for an option and uses as they are. `least` and `most` belong to it; `above` and `below`
    do not."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        """False for NaN and infinity."""
        return math.isfinite(number) and self.least <= number <= self.most and self.above < number < self.below

    def __str__(self) -> str:
        """`from 0 to 1`, `above 0 and below 1`, `from 0 on`."""
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {self.least:g} to {self.most:g}"
        ends = ((self.least, "from {:g} on"), (self.above, "above {:g}"), (self.most, "at most {:g}"), (self.below, "below {:g}"))
        return " and ".join(words.format(end) for end, words in ends if math.isfinite(end))


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a method: its default, the values it takes (None = any of the default's type), and one line of help.
    `defaults` holds the widths whose default is another one; `bits` those at which the option means anything (None = all). A
    number without `choices` says `within` what the library takes it: whatever else it refuses or changes is known by then."""

    default: OptionValue
    choices: tuple[OptionValue, ...] | None = None
    help: str = ""
    types: tuple[type, ...] = ()
    within: Range | None = None
    bits: tuple[float, ...] | None = None
    named: bool = False  # a label names its value, the default too
    defaults: Mapping[float, OptionValue] = field(default_factory=dict)
    check: Callable[[OptionValue], str | None] | None = None  # why a value cannot be, or None; also asked of the default

    def applies(self, bits: float) -> bool:
        """Whether the option means anything at a bit width."""
        return self.bits is None or bits in self.bits

    def at(self, bits: float) -> OptionValue:
        """The default at a bit width."""
        return self.defaults.get(bits, self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """How an engine other than the row's own runs its artifacts. `refuses`: (scheme, kind of device) -> why not, or None."""

    cpu: Mapping[float, Kernel]
    cuda: Mapping[float, Kernel]
    refuses: Callable[[Scheme, str], str | None] = lambda scheme, device: None


BY_SENSITIVITY = "sensitivity"
"""Widths chosen here, by what each layer loses alone (models/sensitivity.py)."""

Width = int | str
"""What a layer of a mixture can be stored in: a number of bits, or the name of a type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """How a row mixes widths by layer (`target_bits` in a suite). `widths` may be chosen unless a suite names others of `known`.
    `bits`: (width, options) -> about how many bits per weight a layer of it takes, scales and zero points included. `options`:
    those of the row that mean something for a mixture (none: all). `beside`: the bits of uniform cells that it may be set beside
    (none: all that the row offers). `ways`: how widths can be chosen, the default first.
    `only_at`: options that belong to one width, so that uniform cells of another do not take them from a mixture."""

    widths: tuple[Width, ...]
    known: tuple[Width, ...]
    bits: Callable[[Width, Mapping[str, Any]], float]
    options: tuple[str, ...] = ()
    beside: tuple[float, ...] = ()
    ways: tuple[str, ...] = (BY_SENSITIVITY,)
    only_at: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a recipe is none, and the key where that is seen."""

    key: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile:
    """How a row takes a recipe of one's own (harness/recipes.py): the `key` that names the file in a suite, an `example` of what
    the file holds, and what of the library's words can be refused before the library is asked. `whole`: the recipe says all of
    the scheme but for the options `beside`; otherwise it stands beside the row's options and bits, and says what is other in
    single layers."""

    key: str
    example: str
    check: Callable[[Mapping[str, Json]], Refused | None]
    whole: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest:
    """All that a method needs to write an artifact. `calibration` is a list of token-id rows of equal length (None when the
    method needs none). `out_dir` exists, is empty and private: the caller moves it into the cache once `quantize` returns.
    `cache`: where what several artifacts are made of is kept; None: nowhere. `training` is the place in the cache where a
    method that trains keeps what it has trained, and its checkpoint meanwhile: a job that was killed finds it there again.
    `progress` is told (steps done, steps in all)."""

    model_dir: Path
    out_dir: Path
    origin: Origin
    calibration: Sequence[Sequence[int]] | None
    device: str
    seed: int
    cache: Path | None = None
    training: Path | None = None
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def scheme(self) -> Scheme:
        return self.origin.scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """Load the packed artifact in `artifact_dir`. `model_dir` is the source model (tokenizer, config); its weights are never
    read, except by the unquantized methods whose artifact points at them."""

    artifact_dir: Path
    model_dir: Path
    origin: Origin
    running: Running
    device: str

    @property
    def scheme(self) -> Scheme:
        return self.origin.scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of `quant-harness methods` and of a suite's `methods:`.

    A new row binds `name`, `title`, `bits` and `quantize`, and what differs from the defaults: those are for artifacts in
    safetensors that transformers loads as they are (`_defaults.py`)."""

    name: str
    title: str
    quantize: Callable[[QuantizeRequest], None]
    version: str = "1"  # bumped when the same scheme would give other weights
    bits: tuple[float, ...] = ()  # none where the artifact is given and says its own
    options: Mapping[str, Option] = field(default_factory=dict)
    engine: str = "transformers"  # key of ENGINES that runs the artifact
    engines: Mapping[str, Elsewhere] = field(default_factory=dict)  # others that run it as well, by their names
    kernel_cpu: Mapping[float, Kernel] = field(default_factory=dict)  # by bits
    kernel_cuda: Mapping[float, Kernel] = field(default_factory=dict)
    load: Callable[[LoadRequest], Any] = _defaults.load  # what the engine runs: for transformers a causal LM in eval mode
    # (scheme, shape if known, device) -> why it cannot be, or None
    supports: Callable[[Scheme, ModelShape | None, str], str | None] = _defaults.supports
    # (way of running, shape if known) -> why it cannot be run like that, or None
    runs: Callable[[Running, ModelShape | None], str | None] = _defaults.runs
    # estimate for the quantized layers, scales and zeros included
    bits_per_weight: Callable[[Scheme], float] = _defaults.bits_per_weight
    ledger: Callable[[Path, Scheme], list[StoredTensor]] = _defaults.ledger  # every tensor stored in the artifact
    # the source's weights as the artifact holds them, to be compared with the source; None: there is no source to compare with
    weights: Callable[[QuantizeRequest], Iterable[HeldWeight]] | None = _defaults.weights
    # the folder whose weights `weights` are compared with: the source's, or those that a method has trained
    compared_with: Callable[[QuantizeRequest], Path] = lambda request: request.model_dir
    folds: bool = False  # may fold scales into norms and biases, and their reciprocals into the layers that follow
    worse: Mapping[float, str] = field(default_factory=dict)  # bits at which it is known to be far off, with the reason
    kernels: Callable[[Any], list[LayerKernel]] = _defaults.kernels  # of what `load` returned
    takes: tuple[WeightKind, ...] = ("linear", "derived")  # what it quantizes of a model's body; `supports` may know more
    # architectures (`model_type` of the config) that the library was tried on and does not quantize right, each with the reason
    untaken: Mapping[str, str] = field(default_factory=dict)
    calibrated: bool = False  # takes calibration rows
    # of one that trains on its rows: what of a scheme, beside rows and recipe, decides the trained weights. Others: None
    trains: Callable[[Scheme], Json] | None = None
    controls: tuple[str, ...] = ()  # methods whose cells a plan puts beside this one's: it says nothing without them
    sees_text: Callable[[Scheme], bool] = _defaults.sees_text  # of one that does: whether this scheme makes use of them
    mixing: Mixing | None = None  # of one whose scheme may be a mixture (`Scheme.mixture`)
    recipe: RecipeFile | None = None  # of one that takes a recipe of one's own
    environment: str = "main"  # "main" (this interpreter), or the name of one that conflicts with it; see docs/environments.md
    loaded_by: str = ""  # the method of the main environment whose loader reads the artifacts, if another environment writes them
    requirements: tuple[str, ...] = ()  # pip requirements: beyond the base install in main, else all of its environment's
    extra: str | None = None  # our extra that brings them into the main environment
    modules: tuple[str, ...] = ("torch", "transformers")  # importable names that must be there
    preload: tuple[str, ...] = ()  # modules worth importing once before forking (must start no threads)
    branch_modules: tuple[str, ...] = ()  # slow imports that start threads or change other libraries: done once, in a branch
    running_options: Mapping[str, Option] = field(default_factory=dict)  # of running: no part of the artifact, see `running_of`
    origin: OriginKind = "quantized"  # "given": the checkpoint names its scheme; "served": the suite does
    unquantized: bool = False  # a dtype, and nothing else: fp32, bf16, fp16
    summary: str = ""
    source: str = ""  # paper or project the method comes from


def resolve_options(method: Method, given: Mapping[str, OptionValue], bits: float) -> dict[str, OptionValue]:
    """The method's options of quantizing at `bits`: its defaults, completed by what was given. `given` may hold options of
    running as well, which are left out. Assumes that the suite has checked the values; KeyError for an option of neither kind."""
    for name in given:
        if name not in method.options and name not in method.running_options:
            raise KeyError(f"{method.name} has no option {name!r}")
    return {name: given.get(name, option.at(bits)) for name, option in method.options.items()}


def running_of(
    method: Method,
    given: Mapping[str, OptionValue],
    bits: float,
    *,
    engine: str = "",
    flags: Mapping[str, Option] | None = None,
) -> Running:
    """How a cell of the method runs: the defaults of its options of running, completed by what was given. In another `engine`
    than the row's, that one's `flags` take their place.

    `kv_cache` and `execution` mean the same to every engine and have fields of their own; all others are flags of one engine."""
    known = method.running_options if flags is None else flags
    values = {name: given.get(name, option.at(bits)) for name, option in known.items()}
    kv, execution = values.pop("kv_cache", ""), values.pop("execution", "")
    return Running(engine=engine or method.engine, kv=str(kv), execution=str(execution), flags=values)


def running_values(running: Running) -> dict[str, OptionValue]:
    """Inverse of `running_of`: the options of running by the names that a suite uses."""
    named = {"kv_cache": running.kv, "execution": running.execution}
    return {**{name: value for name, value in named.items() if value}, **running.flags}
