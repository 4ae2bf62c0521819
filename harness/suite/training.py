"""What the training methods of a suite do: rows, steps and rate, and the control cells without which a gain proves nothing.

A suite says `train:` for all of them, and an entry of `methods` what it does otherwise. The rows that are trained on are drawn
and named as calibration rows are: the scheme's option `calibration` holds corpus, samples (steps * rows), length and seed, its
option `train` the rest. So the same text is the default, its overlap with what is scored is told, and all of it is in the key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from pydantic import ValidationError

from harness.errors import BadInput
from harness.methods import METHODS
from harness.methods.base import Method
from harness.spec import CalibrationText, Quantized, Scheme, Served
from harness.suite import mistakes
from harness.suite.calibration import DEFAULT, CalibrationTexts
from harness.suite.file import KEYS, SuiteFile, Training
from harness.suite.plan import PlannedCell

OPTION = "train"


def check(method: Method, given: Mapping[str, object], where: str) -> None:
    """BadInput where `train` is said of a method that does not train, or `calibration` of one that does."""
    if method.trains is None and OPTION in given:
        raise BadInput(f"{where}: {method.name} does not train; remove `train`")
    if method.trains is not None and "calibration" in given:
        raise BadInput(f"{where}: {method.name} trains on its rows; write them under `train`, not under `calibration`")


def trained(scheme: Scheme, given: object, written: SuiteFile, texts: CalibrationTexts, where: str) -> Scheme:
    """The scheme with what it is trained on and how: the suite's `train` with what the method's own entry, `given`, changes of
    it. `texts` gets the text."""
    wish = _wish(given, written, where)
    own = isinstance(given, Mapping) and "corpus" in given
    place = where if own else written.where(OPTION, "corpus")
    text = DEFAULT if wish.corpus is None else texts.named(wish.corpus, place)
    drawn = {"corpus": text, "samples": wish.steps * wish.rows, "length": wish.length, "seed": wish.seed}
    recipe = {"steps": wish.steps, "rows": wish.rows, "rate": wish.rate, "loss": wish.loss}
    return replace(scheme, options={**scheme.options, OPTION: recipe, "calibration": drawn})


def _wish(given: object, written: SuiteFile, where: str) -> Training:
    if given is not None and not isinstance(given, dict):
        raise BadInput(f"{where}: train: {mistakes.shown(given)} is no mapping; write train: {{steps: 200}}")
    try:
        return Training.model_validate({**written.suite.train.model_dump(), **(given or {})})
    except ValidationError as error:
        wrong = mistakes.below((OPTION,), error.errors(), {OPTION: given}, keys=KEYS)
        raise BadInput("\n".join(f"{where}: {sentence}" for sentence in wrong)) from None


def values(options: dict[str, object]) -> dict[str, object]:
    """What tells two trained schemes apart, by the names that a suite uses, taken out of their options."""
    recipe, drawn = options.pop(OPTION, None), options.get("calibration")
    if not isinstance(recipe, Mapping) or not isinstance(drawn, Mapping):
        return {}
    del options["calibration"]
    return {**recipe, **{name: drawn[name] for name in ("corpus", "length", "seed")}}


class _Choice(Protocol):
    @property
    def origin(self) -> Quantized | Served: ...
    @property
    def label(self) -> str: ...
    @property
    def beside(self) -> str: ...


C = TypeVar("C", bound=_Choice)


def controls(choices: Sequence[C], made: Callable[[C, Scheme], C], identity: Callable[[C], str]) -> list[C]:
    """The choices that the rows of others want beside them (`Method.controls`) and that the suite does not name, with the same
    rows, recipe and options. `made` gives a choice another scheme, with its own label."""
    known = set(map(identity, choices))
    added: list[C] = []
    for choice in choices:
        scheme = choice.origin.scheme
        for name in METHODS[scheme.method].controls:
            method = METHODS[name]
            taken = {key: value for key, value in scheme.options.items() if key in (*method.options, OPTION, "calibration")}
            bits = scheme.bits if scheme.bits in method.bits else method.bits[0]
            control = made(choice, Scheme(method=name, bits=bits, options=taken))
            if identity(control) not in known:
                known.add(identity(control))
                added.append(control)
    return added


MOST_SCORED = 0.5
"""Share of a training text that may be scored as well, in runs of 50 characters (models/overlap.py). Texts of one kind share
phrases; a text of which half is scored is the scored text."""


def check_overlap(written: SuiteFile, planned: Sequence[PlannedCell], texts: Sequence[CalibrationText]) -> None:
    """BadInput where a model is trained on a text that is scored: its perplexity would say what it has learned by heart."""
    trains = {(p.cell.model.name, p.cell.label) for p in planned if METHODS[p.cell.method].trains is not None}
    for text in texts:
        for scored, share in text.overlap.items():
            if share is not None and share > MOST_SCORED and any((text.model, label) in trains for label in text.cells):
                raise BadInput(
                    f"{written.where(OPTION)}: {text.words} is trained on, and {share:.0%} of it is scored in {scored!r}; train "
                    "on another text: train: {corpus: {path: ./other.txt}}"
                )


def notes(choices: Sequence[C]) -> list[str]:
    """What is to be said of the controls that were added."""
    added: dict[str, list[str]] = {}
    for choice in choices:
        if choice.beside:
            added.setdefault(choice.beside, []).append(choice.label)
    return [
        f"{beside} stands beside {' and '.join(labels)}, which the suite does not name: without the same training and no "
        "rounding, or rounding afterwards, a gain over plain rounding proves nothing"
        for beside, labels in added.items()
    ]
