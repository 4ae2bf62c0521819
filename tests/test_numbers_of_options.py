"""Numbers that a suite writes for the options of methods: what a library would refuse hours later, or change without a word, is
refused by `plan`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from harness.errors import BadInput
from harness.methods import METHODS
from harness.methods.base import Option, Range
from harness.suite import matrix, options


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numbers() -> list[tuple[str, str, Option]]:
    """(method, name, option) of every option whose values are numbers that are not listed."""
    return [
        (method.name, name, option)
        for method in METHODS.values()
        for name, option in {**method.options, **method.running_options}.items()
        if option.choices is None and (_is_number(option.default) or {int, float} & set(option.types))
    ]


def refused(name: str, option: Option) -> list[object]:
    """Values that the option must not take: the first ones outside of its range, and what is no number."""
    assert option.within is not None
    within, step = option.within, 1 if isinstance(option.default, int) else 1e-6
    ends = [within.least - step, within.most + step, within.above, within.below]
    whole = [] if isinstance(option.default, float) or float in option.types else [1.5]
    return [*(end for end in ends if math.isfinite(end)), *whole, math.nan, math.inf, -math.inf, True, False, "1", "a"]


def test_there_are_numbers_to_be_checked() -> None:
    assert {("gptq", "damp"), ("gptq", "mse"), ("autoround", "iters"), ("openvino", "ratio"), ("llmcompressor", "smooth")} <= {
        (method, name) for method, name, _ in numbers()
    }


@pytest.mark.parametrize(("method", "name", "option"), numbers(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_number_of_a_method_has_a_range_that_its_defaults_are_in(method: str, name: str, option: Option) -> None:
    assert option.within is not None, f"{method}: {name} says no `within`"
    defaults = [option.default, *option.defaults.values()]
    assert all(isinstance(value, (int, float)) and value in option.within for value in defaults)


@pytest.mark.parametrize(("method", "name", "option"), numbers(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_number_outside_of_its_range_is_refused_by_plan_in_one_sentence(
    method: str, name: str, option: Option, tmp_path: Path
) -> None:
    served = METHODS[method].origin == "served"  # its operator names the width
    most = {"serve": "server {port}"} if served else {"bits": next(b for b in METHODS[method].bits if option.applies(b))}
    for value in refused(name, option):
        path = tmp_path / "mine.yaml"
        written = {method: {**most, name: value}}
        path.write_text(yaml.safe_dump({"name": "mine", "models": ["reference"], "methods": {"bf16": None, **written}}))
        with pytest.raises(BadInput) as caught:
            matrix.plan(path, device="cpu")
        said = str(caught.value)
        assert f"{method}: {name}: " in said, (value, said)
        assert f"write {name}: " in said, (value, said)
        assert "\n" not in said, (value, said)


@pytest.mark.parametrize(
    ("within", "words", "inside", "outside"),
    [
        (Range(least=0, most=1), "from 0 to 1", (0, 0.5, 1), (-1e-9, 1.0001)),
        (Range(above=0, below=1), "above 0 and below 1", (1e-9, 0.999), (0, 1, -1)),
        (Range(above=0, most=1), "above 0 and at most 1", (1e-9, 1), (0, 1.0001)),
        (Range(least=0), "from 0 on", (0, 10**9), (-1,)),
    ],
)
def test_a_range_holds_its_numbers_and_says_them(
    within: Range, words: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert str(within) == words
    assert all(number in within for number in inside)
    assert not any(number in within for number in (*outside, math.nan, math.inf))


def test_a_whole_number_written_with_a_point_is_taken_and_stays_whole() -> None:
    assert repr(options.value(METHODS["autoround"].options["iters"], "iters", 20.0)) == "20"
