"""Which stored run is meant: by its path, or by a word that is looked up in a suite's results folder.

`latest`: the newest finished run (before the candidate, where it stands for BASE). `last-green`: the newest run that a kept
verdict found green. `accepted`: the run that was accepted last; before any was, the oldest finished one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BadInput
from harness.gate import journal
from harness.proof import seal_path

LATEST, LAST_GREEN, ACCEPTED = WORDS = ("latest", "last-green", "accepted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The run file, and what is to be said of the choice ('' where it was named)."""

    path: Path
    note: str = ""


def candidate(text: str, results: Path | None) -> Chosen:
    """The run that is judged. BadInput where there is none."""
    if text not in WORDS:
        return _of_path(Path(text))
    return _by_word(text, _folder(text, results), before=None)


def of_folder(text: str, results: Path | None) -> Chosen:
    """The run that a folder's journal is to name: `candidate`, or a run of `results` by its file's name. BadInput where it lies
    in another folder than `results`, whose journal would be the wrong one."""
    if results is None or text in WORDS:
        return candidate(text, results)
    folder, path = _folder(text, results), Path(text)
    inside = [folder / name for name in (path.name, f"{path.name}.jsonl") if (folder / name).is_file()]
    if not path.exists() and path.name == text and inside:
        return Chosen(path=inside[0])
    chosen = _of_path(path)
    if chosen.path.parent.resolve() != folder.resolve():
        raise BadInput(
            f"{chosen.path}: does not lie in {folder} (--results), and each folder has a journal of its own; leave --results "
            "out, or name a run of that folder"
        )
    return chosen


def base(text: str, results: Path | None, judged: Path) -> Chosen:
    """The run that the candidate, a run file, is held against. Words are looked up in `results`, or in the candidate's folder."""
    if text not in WORDS:
        return _of_path(Path(text))
    return _by_word(text, results or judged.parent, before=judged)


def accepted(folder: Path) -> Path | None:
    """The run that was accepted last; None where none was, or where its file is gone. BadInput where the journal's damage leaves
    open which one it is."""
    newest = journal.read(folder).newest
    path = folder / f"{newest}.jsonl" if newest is not None else None
    return path if path is not None and path.is_file() else None


def finished(folder: Path) -> Sequence[Path]:
    """The finished run files of a folder, oldest first: their names begin with the UTC time of their start."""
    return [path for path in sorted(folder.glob("*.jsonl")) if seal_path(path).is_file()]


def _of_path(path: Path) -> Chosen:
    if path.is_file():
        return Chosen(path=path)
    if not path.is_dir():
        raise BadInput(f"{path}: no such run file or results folder; name one, or a word: {', '.join(WORDS)}")
    whole = finished(path)
    if whole:
        note = _unfinished_after(whole[-1])
        return Chosen(path=whole[-1], note=f"{path}: {whole[-1].name}{note}" if note else "")
    runs = sorted(path.glob("*.jsonl"))
    if not runs:
        raise BadInput(f"{path}: holds no results (*.jsonl); make some with: quant-harness run SUITE")
    return Chosen(path=runs[-1])


def _unfinished_after(path: Path) -> str:
    """Says that newer runs lie beside a run which are not finished; '' where none does."""
    newer = [p for p in sorted(path.parent.glob("*.jsonl")) if p.name > path.name and not seal_path(p).is_file()]
    return f"; {newer[-1].name} is newer, not finished, and not judged: quant-harness run goes on with it" if newer else ""


def _folder(word: str, results: Path | None) -> Path:
    if results is None:
        raise BadInput(f"{word!r} is looked up in a suite's results folder; name it with --results results/SUITE")
    if not results.is_dir():
        raise BadInput(f"{results}: no such folder (--results); it is where `quant-harness run` keeps a suite's runs")
    return results


def _by_word(word: str, folder: Path, *, before: Path | None) -> Chosen:
    whole = [p for p in finished(folder) if before is None or (p != before and p.name < before.name)]
    if word == LATEST:
        if not whole:
            where = "" if before is None else " before the candidate, so there is nothing to hold it against"
            raise BadInput(f"{folder}: holds no finished run{where}; finish one with: quant-harness run SUITE")
        return Chosen(path=whole[-1], note=f"latest is {whole[-1].name}{_unfinished_after(whole[-1])}")
    known = journal.read(folder)
    runs = {path.stem: path for path in finished(folder)}
    if word == ACCEPTED:
        named = known.newest
        if named is not None and named not in runs:
            raise BadInput(
                f"{folder}: the accepted run {named} is gone, or not finished; accept another with: quant-harness accept RUN"
            )
        if named is not None:
            return Chosen(path=runs[named], note=f"accepted is {named}")
        if not whole:
            raise BadInput(f"{folder}: no run was accepted, and none is finished before the candidate; quant-harness accept RUN")
        return Chosen(path=whole[0], note=f"no run was accepted yet, so the oldest finished one stands in ({whole[0].name})")
    green = [
        line.candidate
        for line in known.verdicts
        if line.green and line.candidate in runs and (before is None or line.candidate != before.stem)
    ]
    if not green:
        raise BadInput(f"{folder}: no verdict was kept that found a run green; keep them with: quant-harness gate ... --keep")
    return Chosen(path=runs[green[-1]], note=f"last-green is {green[-1]}")
