"""The models of a suite: plain ones, and checkpoints that are quantized already, each with the model that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from harness.artifact import ModelShape
from harness.errors import BadInput, UnknownName
from harness.formats.config_json import ModelConfig
from harness.formats.quantization_config import quantization
from harness.formats.safetensors_file import brief
from harness.models import body, find, grid, hub
from harness.spec import Model, SourceGrid
from harness.suite.file import SuiteFile, unique

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model of the suite. `of`: the model that it was made of, whose cell it is then. `shape`: what its files say, None until
    they are here. `grid`: on which its weights lie, where a note says that they were quantized before. `unread`: stored tensors
    that transformers does not load."""

    model: Model
    of: Model | None
    shape: ModelShape | None = None
    grid: SourceGrid | None = None
    unread: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def config(self) -> ModelConfig:
        return {} if self.shape is None else self.shape.config

    @property
    def quantized(self) -> bool:
        """Whether its own config says that it is quantized already."""
        return quantization(self.config) is not None


def sources_of(written: SuiteFile) -> list[Source]:
    """All models; those that were made of another one come last, so that baselines come first. BadInput or UnknownName for an
    entry that names no model."""
    entries = [dict(e) if isinstance(e, dict) else e for e in written.suite.models]
    made_of = [e.pop("of", None) if isinstance(e, dict) else None for e in entries]
    models = [_placed(find.model, written)(entry, written.folder) for entry in entries]
    unique([m.name for m in models], f"{written.where('models')}: model name", "write {path: ..., name: another}")
    plain = {m.name: m for m, of in zip(models, made_of, strict=True) if of is None}
    for of in made_of:
        if of is not None and str(of) not in plain:
            raise UnknownName("model (of)", str(of), plain, written.where("models"))
    sources = [Source(model=m, of=None if of is None else plain[str(of)]) for m, of in zip(models, made_of, strict=True)]
    return sorted(sources, key=lambda s: s.of is not None)


def looked_at(
    sources: Sequence[Source],
    written: SuiteFile,
    shapes: Mapping[str, ModelShape | None] | None,
    *,
    bodies: bool,
    cache: Path | None,
) -> list[Source]:
    """The sources with their shapes, read from disk or taken from `shapes` (tests); with `bodies` also what holds the weights in
    transformers, remembered in `cache`. BadInput for a file that is not what the suite says it is, and with `bodies` for a model
    that transformers cannot load."""
    if shapes is None:
        pin, shape, noted = _placed(_pinned, written), _placed(find.shape, written), _placed(grid.of, written)
        commits = {s.model: pin(s.model) for s in sources}
        pinned = [replace(s, model=commits[s.model], of=None if s.of is None else commits[s.of]) for s in sources]
        filled, unread = _placed(find.filled, written), _placed(find.unread, written)
        known = [replace(s, shape=shape(s.model), grid=noted(s.model)) for s in pinned]
        known = [replace(s, shape=filled(s.model, cache=cache)) if s.model.random else s for s in known]
        if bodies:
            for source in known:
                _placed(_check_kind, written)(source)
            own = {s.name for s in known if s.shape is not None and not s.quantized}
            known = [replace(s, unread=unread(s.model, s.config, cache=cache)) if s.name in own else s for s in known]
    else:
        known = [replace(s, shape=shapes[s.name]) for s in sources]
    known = _placed(_with_bodies, written)(known, cache) if bodies else known
    for source in known:
        if source.of is not None and not source.quantized:
            raise BadInput(
                f"{written.where('models')}: {source.name!r} is given as a quantization of {source.of.name!r}, but "
                + (
                    "it is not in the local cache, and the hub cannot be reached to look at it"
                    if source.shape is None
                    else "its config.json names no quantization"
                )
            )
        if source.of is None and find.is_one_file(source.model):
            raise BadInput(
                f"{written.where('models')}: {source.name!r} is a GGUF file, which is asked with the tokenizer of the model that "
                "it was made of: give that one as a model too, and name it here with `of`"
            )
    return known


def notes(sources: Sequence[Source]) -> tuple[str, ...]:
    """What is to be said of the models' files: tensors that no cell holds."""
    return tuple(
        f"model {s.name!r}: its files also hold {brief(s.unread)}, which transformers does not load (computed anew, or of parts "
        "that answer no text): no cell holds them, and no size counts them"
        for s in sources
        if s.unread
    )


def _pinned(model: Model) -> Model:
    if model.repo is not None:
        hub.check_address()
    try:
        return find.pinned(model)
    except BadInput as error:
        raise BadInput(f"{error}{find.meant(model)}") from None


def out_of_reach(sources: Sequence[Source]) -> list[str]:
    """A line for each model of the hub of which nothing is known here, because the hub cannot be asked."""
    return [
        f"model {source.name!r} is taken for {source.model.repo} of the hub; it is not in the local cache, and "
        f"{hub.why_silent()}, so nothing is known of it here; a default group size may "
        f"fall once its sizes are known{find.meant(source.model)}"
        for source in sources
        if source.model.repo is not None and source.shape is None
    ]


def _check_kind(source: Source) -> None:
    """BadInput for a checkpoint whose config.json does not say which of transformers' models it is."""
    if source.shape is None or find.is_one_file(source.model):
        return
    kind = source.config.get("model_type")
    if isinstance(kind, str) and kind:
        return
    meant = body.kind_of(source.shape.architecture)
    remedy = f'add "model_type": "{meant}", which its architectures name' if meant else "fetch it again, or save the model again"
    raise BadInput(
        f"model {source.name!r}: the config.json of {source.model.path or source.model.repo} names no model_type, by which "
        f"transformers knows the model's class; {remedy}"
    )


def _with_bodies(sources: Sequence[Source], cache: Path | None) -> list[Source]:
    """The sources with the bodies of their models, where transformers can be asked for them. A checkpoint that is quantized
    already is asked for as well, and gets none: its layers its own format decides."""
    asked = {
        s.name: s.shape
        for s in sources
        if s.shape is not None and not find.is_one_file(s.model) and "model_type" in s.shape.config
    }
    configs = {name: shape.config for name, shape in asked.items() if shape.body is None}
    of = body.of_configs(configs, cache=cache)
    plain = {s.name for s in sources if not s.quantized} & of.keys()
    return [replace(s, shape=replace(asked[s.name], body=of[s.name])) if s.name in plain else s for s in sources]


def _placed(ask: Callable[P, T], written: SuiteFile) -> Callable[P, T]:
    """`ask`, whose BadInput says where in the suite the models are."""

    def asked(*given: P.args, **named: P.kwargs) -> T:
        try:
            return ask(*given, **named)
        except BadInput as error:
            raise BadInput(f"{written.where('models')}: {error}") from None

    return asked
