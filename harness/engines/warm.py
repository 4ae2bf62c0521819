"""What a fork server does once, so that its children need not: imported there for its effect, and nowhere else.

transformers builds the renaming rules of all its architectures, a thousand regular expressions, when a process first loads or
saves a model: half a second, in each of the three or four children of a cell.
"""

from __future__ import annotations

from contextlib import suppress

with suppress(ImportError, AttributeError):  # other versions build other things
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")
