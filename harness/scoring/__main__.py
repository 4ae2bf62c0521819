"""lm-eval's own command line with `--model fastlm` registered: `python -m harness.scoring run --model fastlm --model_args ...`.

lm-eval 0.4.13 looks for models in its own table only and has no plug-in entry point, so the class has to be imported first.
"""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

import harness.scoring.lm  # noqa: F401  (registers the model)

if __name__ == "__main__":
    cli_evaluate()
