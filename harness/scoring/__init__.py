"""Fast scoring of causal language models: lm-eval's answers for a fraction of the work.

`FastLM` is an `lm_eval.api.model.LM`; `split` cuts a model into body and head. Importing this package imports neither torch nor
lm-eval: both come with the first use of a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.scoring.head import Split, split
    from harness.scoring.lm import FastLM

__all__ = ["FastLM", "Split", "split"]


def __getattr__(name: str) -> object:
    if name == "FastLM":
        from harness.scoring.lm import FastLM

        return FastLM
    if name in ("Split", "split"):
        import harness.scoring.head as head

        return getattr(head, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
