"""A job: one folder with job.json, written by the parent and read by the child, and the outcomes that the child leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness.spec import Cell, Json, Question, Running, cell_from_json, digest, question_from_json, to_json


def read_outcome(path: Path) -> Json | None:
    """What a child left; None when it left nothing readable."""
    try:
        outcome: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return outcome


MANIFEST = "artifact.json"
"""Written last into an artifact's folder: a folder without it is no artifact."""


def verified(artifact: Path, running: Running) -> Path:
    """Written into an artifact once a fresh process has reloaded it, to be run in this way, and found that it answers as its
    weights say. Another way of running may load it otherwise, so it is checked by itself."""
    return artifact / f"verified-{digest(running)[:12]}.json"


class Job:
    """One job as read from job.json; attributes are its fields."""

    def __init__(self, folder: Path) -> None:
        data = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.stage: str = data["stage"]
        self.cell: Cell = cell_from_json(data["cell"])
        self.is_baseline: bool = data["is_baseline"]
        self.questions: list[Question] = [question_from_json(q) for q in data["questions"]]
        self.model_dir = Path(data["model_dir"])
        self.artifact_dir = Path(data["artifact_dir"])
        self.baseline: Json = data["baseline"]
        self.device: str = data["device"]
        self.seed: int = data["seed"]
        self.threads: int = data["threads"]
        self.cache = Path(data["cache"])
        self.texts: dict[str, str] = data["texts"]
        self.task_folders: dict[str, str] = data["task_folders"]
        self.references: dict[str, str] = data["references"]
        self.baseline_items: dict[str, Json] = data["baseline_items"]
        self.calibration: Json = data["calibration"]


def reference_name(question: Question) -> str:
    """Two questions with the same name share the baseline's stored answers."""
    return f"{question.subject}|{question.options['corpus_digest']}|{question.options['window']}|{question.options['tokens']}"


def write_json(path: Path, data: Json, *, lasting: bool = False) -> None:
    """Complete or not there. `lasting`: on the disk when this returns; what the parent reads at once and stores need not be."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(to_json(data), file, ensure_ascii=False, allow_nan=False)
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path)
