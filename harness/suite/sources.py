"""The models of a suite: plain ones, and checkpoints that are quantized already, each with the model that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.artifact import ModelShape
from harness.errors import BadInput, UnknownName
from harness.formats.config_json import ModelConfig
from harness.formats.quantization_config import quantization
from harness.models import find
from harness.spec import Model
from harness.suite.file import SuiteFile, unique


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model of the suite. `of`: the model that it was made of, whose cell it is then. `shape`: what its files say, None until
    they are here."""

    model: Model
    of: Model | None
    shape: ModelShape | None = None

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
    models = [find.model(entry, written.folder) for entry in entries]
    unique([m.name for m in models], f"{written.where('models')}: model name")
    plain = {m.name: m for m, of in zip(models, made_of, strict=True) if of is None}
    for of in made_of:
        if of is not None and str(of) not in plain:
            raise UnknownName("model (of)", str(of), plain, written.where("models"))
    sources = [Source(model=m, of=None if of is None else plain[str(of)]) for m, of in zip(models, made_of, strict=True)]
    return sorted(sources, key=lambda s: s.of is not None)


def looked_at(sources: Sequence[Source], written: SuiteFile, shapes: Mapping[str, ModelShape | None] | None) -> list[Source]:
    """The sources with their shapes, read from disk or taken from `shapes` (tests). BadInput for a file that is not what the
    suite says it is."""
    if shapes is None:
        commits = {s.model: find.pinned(s.model) for s in sources}
        pinned = [replace(s, model=commits[s.model], of=None if s.of is None else commits[s.of]) for s in sources]
        known = [replace(s, shape=find.shape(s.model)) for s in pinned]
    else:
        known = [replace(s, shape=shapes[s.name]) for s in sources]
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
