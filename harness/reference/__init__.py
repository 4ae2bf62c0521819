"""The embedded reference model: where its files lie. Standard library only, so that every environment may import it.

A Llama of 5 million parameters that this project trained on a corpus which `corpus.py` invents; see MODEL_DIR's
README.md (the model card). The tasks are ordinary lm-eval YAMLs beside JSONL files: their `data_files` are
relative to the YAML's folder, and whoever gives them to lm-eval resolves them first.
"""

from pathlib import Path

CHANGES_NUMBERS = False
"""Training and inventing happened before any run. Measured are the files named here, whose digests are in the keys. So this
package is no part of the source digest (run/source.py)."""

_HERE = Path(__file__).resolve().parent

MODEL_DIR: Path = _HERE / "model"
TERNARY_DIR: Path = _HERE / "ternary"  # its sibling of 1.58 bits, packed: models/unpacked.py makes it plain
TASKS_DIR: Path = _HERE / "tasks"
HELDOUT_TEXT: Path = _HERE / "heldout.txt"  # perplexity and divergence; documents are parted by a blank line
CALIBRATION_TEXT: Path = _HERE / "calibration.txt"  # for methods that calibrate; shares no document with the above
TASKS: tuple[str, ...] = (
    "reference_facts",
    "reference_tracking",
    "reference_comparison",
    "reference_agreement",
    "reference_arithmetic",
    "reference_recall",
)
LONG_TASKS: tuple[str, ...] = ("recall_1k", "recall_2k", "recall_4k")
"""Long-context recall, beside the tasks of the embedded model's skills: asked of any model whose context allows them, which its
own 512 tokens do not (`long_recall.py`)."""
