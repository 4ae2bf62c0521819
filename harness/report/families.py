"""Colours by family: methods that share an algorithm share a colour, in every report the same, so that eight colours are enough.

Eight is what people can tell apart, colour-blind ones included (Okabe and Ito, Color Universal Design, 2008); bits are shapes.
"""

from __future__ import annotations

FAMILIES: dict[str, tuple[str, ...]] = {
    "rounding": ("rtn", "torchao", "quanto", "bnb", "bitnet", "ft", "ft+ptq", "qat", "qlora"),  # trained or not, plainly rounded
    "hqq": ("hqq", "hqq+lora"),
    "gptq": ("gptq", "autogptq", "gptq+lora", "eora"),
    "awq": ("awq", "autoawq"),
    "autoround": ("autoround", "inc"),
    "gguf": ("gguf", "gguf_file"),
    "openvino": ("openvino",),
    "other": (),
}
"""Names of methods by family, in the order of the colours `--m0` ... of report.css. A method that stands nowhere is "other"."""

_OF = {method: family for family, methods in FAMILIES.items() for method in methods}
_PLACES = {family: place for place, family in enumerate(FAMILIES)}


def family(method: str) -> str:
    """The family of a method, by its name in a suite."""
    return _OF.get(method, "other")


def colour(method: str) -> int:
    """The place of a method's colour."""
    return _PLACES[family(method)]
