"""The models of a suite: plain ones, checkpoints quantized already, and servers, each with the model it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.artifact import ModelShape
from harness.errors import BadInput, UnknownName
from harness.errors import Unsupported as Refused
from harness.methods import METHODS, prequantized
from harness.models import find
from harness.probes import PROBES
from harness.spec import Cell, Model, Question, Scheme
from harness.suite.file import Suite, unique
from harness.suite.plan import PlannedCell, Unsupported


def sources_of(suite: Suite, base: Path, where: Any) -> tuple[list[Model], dict[str, Model]]:
    """All models, and by name the model that a quantized checkpoint was made `of`. Those come last: others' baselines first."""
    wishes = [(dict(e) if isinstance(e, dict) else e) for e in suite.models]
    made_of = [e.pop("of", None) if isinstance(e, dict) else None for e in wishes]
    sources = [find.model(entry, base) for entry in wishes]
    unique([m.name for m in sources], f"{where('models')}: model name")
    plain = {m.name: m for m, of in zip(sources, made_of, strict=True) if of is None}
    origin: dict[str, Model] = {}
    for source, of in zip(sources, made_of, strict=True):
        if of is not None:
            if str(of) not in plain:
                raise UnknownName("model (of)", str(of), plain, where("models"))
            origin[source.name] = plain[str(of)]
    return sorted(sources, key=lambda m: m.name in origin), origin


def check_served_models(schemes: Sequence[Scheme], names: Sequence[str], where: Any) -> None:
    """Every server's cell belongs to one model of the suite: whose tokenizer it is asked with."""
    for scheme in schemes:
        if not METHODS[scheme.method].served:
            continue
        of, place = str(scheme.options["of"]), where("methods", scheme.method)
        if of and of not in names:
            raise UnknownName("model (of)", of, names, place)
        if not of and len(names) > 1:
            raise BadInput(f"{place}: the suite has several models; say which one {scheme.label!r} serves: of: {names[0]}")


def prequantized_square(
    suite: Suite, source: Model, shape: ModelShape | None, of: Model | None, questions: Sequence[Question]
) -> PlannedCell | Unsupported:
    """The one square of a model that is quantized already: a cell of the model it was made of, or, alone, its own baseline."""
    config = {} if shape is None else shape.config
    asked = [q for q in questions if PROBES[q.probe].served is not True and q.probe != "quantize"]  # nobody quantizes it here
    try:
        scheme = prequantized.scheme(config, None if of is None else source.name)
    except Refused as error:
        name = prequantized.NAME if of is None else source.name
        return Unsupported(cell=Cell(model=of or source, scheme=Scheme(method=name, bits=0, label=name)), reason=str(error))
    return PlannedCell(
        cell=Cell(model=of or source, scheme=scheme),
        questions=tuple(asked),
        baseline=of is None,
        estimated_bpw=METHODS[scheme.method].bits_per_weight(scheme),
        estimated_bytes=find.stored_bytes(source),
    )
