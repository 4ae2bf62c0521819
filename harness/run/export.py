"""Takes a measured artifact out of the cache: its files byte for byte, beside a card made from the record.

What is no longer in the cache is made again, by the stages that made it first, in child processes. Either way every file is
hashed while it is copied and has to be the one that the run file names; where one is not, nothing is left behind and `Differs`
says so.
The cache stays as it is: files are copied, never linked, because whoever edits an export must not edit what is measured next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from harness import files, plugins
from harness.artifact import MANIFEST, ArtifactRecord, StoredFile
from harness.errors import BadInput, HarnessError
from harness.measure import machine
from harness.models import licence
from harness.report import card
from harness.report.card import Release, Way
from harness.report.cells import CellView
from harness.report.markdown import line
from harness.report.view import View
from harness.run import contents, identity, serving
from harness.run.account import Account
from harness.run.observer import Observer
from harness.run.stages import Stages
from harness.run.workspace import check_disk, sweep
from harness.spec import Cell, Failure, Given, Model, RunContext, Served, digest
from harness.store import Run
from harness.suite import file, matrix
from harness.suite.plan import Plan, PlannedCell

CHANGES_NUMBERS = False
"""It copies what was measured; what makes an artifact again is `stages.py`."""

EXIT_DIFFERS = 1

CARD_BYTES = 1 << 20
"""Room that is kept for the card."""


class Differs(HarnessError):
    """The artifact that is here, or that could be made again, is not the one that was measured."""

    exit_code = EXIT_DIFFERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written: the folder, the artifact's files, how they are served, and whether they had to be made again. `copied`:
    they were not there before."""

    folder: Path
    artifact: ArtifactRecord
    ways: tuple[Way, ...]
    rebuilt: bool
    copied: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to export and where to. `suite`: the file by which an artifact that is gone is made again, where it is not the one
    that the run file names. `ask_hub`: the licence of a hub model may be looked up there. `again`: the folder may hold this
    export already, of which only the card is written anew."""

    cell: CellView
    to: Path
    suite: str | None = None
    ask_hub: bool = False
    again: bool = False


def export(run: Run, view: View, wish: Wish, cache: Path, observer: Observer) -> Export:
    """Writes the artifact of a cell and its card into the folder `wish.to`, which appears when it is complete.

    BadInput where there is nothing to export or the folder is not free; Differs where the bytes are not those of the record."""
    cell = wish.cell.cell
    cache = cache.expanduser().resolve()
    artifact = measured(run, wish.cell)
    target = wish.to.expanduser().absolute()
    if _taken(target):
        if not (wish.again and _same(target, artifact)):
            raise BadInput(f"{target}: is there already and not empty; name another folder, or remove it first")
        files.write_atomically(target / card.FILE, _card(view, wish, artifact, rebuilt=False))
        return Export(folder=target, artifact=artifact, ways=serving.ways(cell, artifact), rebuilt=False, copied=False)
    _check_room(target, artifact)
    place = cache / "artifacts" / artifact.folder
    rebuilt = not _whole(place)
    if rebuilt:
        place = _rebuilt(run, cell, wish.suite, cache, observer)
    found = contents.files(place)
    _check_names(found, artifact, place, run.header.context, rebuilt=rebuilt)
    observer.doing(cell, "copy")
    try:
        with files.draft_folder(target, over=False) as draft:
            for stored in artifact.files:
                if _copied(found[stored.name], draft / stored.name) != stored.sha256:
                    raise _differs([stored.name], place, run.header.context, rebuilt=rebuilt)
            (draft / card.FILE).write_text(_card(view, wish, artifact, rebuilt=rebuilt), encoding="utf-8")
    except files.AlreadyThere as error:
        raise BadInput(f"{error}; name another folder") from None
    except OSError as error:
        raise BadInput(f"{target}: cannot be written ({error.strerror}); name another folder") from None
    return Export(folder=target, artifact=artifact, ways=serving.ways(cell, artifact), rebuilt=rebuilt)


def measured(run: Run, cell: CellView) -> ArtifactRecord:
    """The artifact on which all numbers of a cell were measured. BadInput where the run file names none, or several."""
    origin, name = cell.cell.origin, line(cell.cell.name)
    if isinstance(origin, Served):
        raise BadInput(
            f"{name}: was measured on the server {line(origin.url)}, and whoever runs that has its files; nothing to export"
        )
    records = [outcome.record for outcome in cell.outcomes if outcome.record is not None]
    digests = sorted({record.artifact for record in records if record.artifact})
    again = f"measure it again with: {line(run.plan.commands[0]) if run.plan.commands else 'quant-harness run SUITE'}"
    if not digests:
        failures = [record.failure for record in records if record.failure is not None]
        if not records:
            raise BadInput(f"{name}: was planned and not measured yet; {again}")
        if len(failures) == len(records):
            why = f"{line(failures[0].phase)}: {line(failures[0].message, 1000)}"
            raise BadInput(f"{name}: has no artifact ({why}); see its failures in the report")
        raise BadInput(f"{name}: this run file is from before 2026-11-29 and does not say which bytes were measured; {again}")
    if len(digests) > 1:
        raise BadInput(
            f"{name}: its numbers were measured on {len(digests)} different artifacts ({', '.join(d[:12] for d in digests)}), so "
            f"no one of them is the measured one; {again} --fresh"
        )
    artifact = run.artifacts.get(digests[0])
    if artifact is None or digest(artifact.files) != artifact.digest or not artifact.files or not _safe(artifact):
        raise BadInput(f"{run.path}: the list of files of the artifact {digests[0][:12]} is missing or damaged; {again} --fresh")
    return artifact


_PART = re.compile(r"[^/\\]+")


def _safe(artifact: ArtifactRecord) -> bool:
    """Whether all names stay in their folders. A run file may come from anywhere."""

    def inside(name: str) -> bool:
        path = PurePosixPath(name)
        plain = (
            name.isprintable() and not path.is_absolute() and path.as_posix() == name and name.casefold() != card.FILE.casefold()
        )
        return plain and all(_PART.fullmatch(part) and part not in (".", "..") for part in path.parts) and bool(path.parts)

    names = [stored.name for stored in artifact.files]
    return (
        all(map(inside, names))
        and len(set(names)) == len(names)
        and len(PurePosixPath(artifact.folder).parts) == 1
        and inside(artifact.folder)
    )


def _taken(target: Path) -> bool:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BadInput(f"{target}: is a file or a link, and an export is a folder; name another place")
    return target.is_dir() and any(target.iterdir())


def _same(target: Path, artifact: ArtifactRecord) -> bool:
    """Whether a folder holds this artifact with a card, and nothing else."""
    there = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if not path.is_dir()}
    if there.keys() != {*(stored.name for stored in artifact.files), card.FILE}:
        return False
    return all(files.sha256(there[stored.name]) == stored.sha256 for stored in artifact.files)


def _check_room(target: Path, artifact: ArtifactRecord) -> None:
    need, have = sum(stored.bytes for stored in artifact.files) + CARD_BYTES, machine.free_disk_bytes(target)
    if need > have:
        raise BadInput(
            f"{target}: the export takes {need / 1e9:,.2f} GB and that disk has {have / 1e9:,.2f} GB free; free some, or name a "
            "folder on another disk"
        )


def _whole(place: Path) -> bool:
    """Whether an artifact is in the cache with all that its links lead to."""
    return (place / MANIFEST).is_file() and all(path.exists() for path in place.rglob("*"))


def _check_names(found: Mapping[str, Path], artifact: ArtifactRecord, place: Path, then: RunContext, *, rebuilt: bool) -> None:
    named: dict[str, StoredFile] = {stored.name: stored for stored in artifact.files}
    other = sorted(found.keys() ^ named.keys())
    other += sorted(name for name in found.keys() & named.keys() if found[name].stat().st_size != named[name].bytes)
    if other:
        raise _differs(other, place, then, rebuilt=rebuilt)


def _differs(names: list[str], place: Path, then: RunContext, *, rebuilt: bool) -> Differs:
    which = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    if not rebuilt:
        return Differs(
            f"{place}: {which}: not what was measured: it was changed, or made anew, since. Nothing was exported; remove that "
            "folder and export again, and the artifact is made once more"
        )
    return Differs(
        f"the artifact was no longer in the cache, and made again it is another one ({which}): the record's numbers are not "
        f"those of its bytes. Nothing was exported. {_changes(then)} Measure what can be made now with: quant-harness run SUITE "
        "--fresh, and export that"
    )


def _changes(then: RunContext) -> str:
    """What is not as it was when the cell was measured."""
    now = machine.packages()
    names = sorted(name for name in now.keys() | then.packages.keys() if now.get(name) != then.packages.get(name))
    packages = [f"{name} {then.packages.get(name, 'absent')} then, {now.get(name, 'absent')} now" for name in names]
    said = [*(["another machine"] if machine.host_id() != then.host else []), *packages[:5]]
    more = f", and {len(packages) - 5} more packages" if len(packages) > 5 else ""
    return f"Other than then: {'; '.join(said)}{more}." if said else "Machine and packages are the same as then."


def _copied(source: Path, target: Path) -> str:
    """Copies a file's bytes, and returns the SHA-256 of what was read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        return files.sha256(source, copied=file.write)


def _card(view: View, wish: Wish, artifact: ArtifactRecord, *, rebuilt: bool) -> str:
    cell = wish.cell.cell
    known = (licence.of(model, fetch=wish.ask_hub) for model in _licensed(cell))
    release = Release(
        library=serving.library(cell),
        ways=serving.ways(cell, artifact),
        licence=next((each for each in known if each is not None), None),
        rebuilt=rebuilt,
    )
    return card.card(view, wish.cell, artifact, release)


def _licensed(cell: Cell) -> list[Model]:
    """The models whose licence holds for an artifact, the nearest first: a given checkpoint's own, and the source's."""
    return [*([cell.origin.checkpoint] if isinstance(cell.origin, Given) else []), cell.model]


# ---- an artifact that is gone ----


def _rebuilt(run: Run, cell: Cell, suite: str | None, cache: Path, observer: Observer) -> Path:
    """Makes the artifact of a cell again, as a run of its suite would, and returns its folder."""
    plan = _planned(run, cell, suite, cache)
    check_disk(plan, cache)
    sweep(cache)
    inputs = identity.gather(plan, cache, tell=observer.fetching)
    planned = next(each for each in plan.cells if each.cell.identity() == cell.identity())
    stages = Stages(inputs, observer, threads=run.header.context.threads)
    stages.account = Account(planned, (), None)
    try:
        made = stages.artifact(planned)
    finally:
        stages.close()
    if isinstance(made, Failure):
        raise BadInput(f"{line(cell.name)}: its artifact is no longer in the cache, and cannot be made again: {made.message}")
    return made


def _planned(run: Run, cell: Cell, suite: str | None, cache: Path) -> Plan:
    """The plan of the cell and its baseline alone, without questions. BadInput where the suite does not plan that cell now."""
    plugins.load()
    named = suite or _suite_of(run)
    lost = f"{line(cell.name)}: its artifact is no longer in the cache"
    if named is None:
        raise BadInput(f"{lost}, and the run file names no suite to make it again; name it with --suite FILE")
    try:
        path = file.find(named)
    except BadInput as error:
        raise BadInput(f"{lost}, and its suite is not where it was ({error}); name it with --suite FILE") from None
    device = matrix.choose_device(run.header.context.device, here=True)
    plan = matrix.plan(path, device=device, cache=cache)
    found = next((each for each in plan.cells if each.cell.identity() == cell.identity()), None)
    if found is None:
        raise BadInput(
            f"{lost}, and {path} does not plan it any more: another model, commit, scheme or way of running stands there; name "
            "the suite as it was with --suite FILE"
        )
    if plan.suite.seed != run.plan.suite.get("seed", 0):
        raise BadInput(f"{lost}, and {path} has another seed now; name the suite as it was with --suite FILE")
    baseline = next(each for each in plan.cells if each.baseline and each.cell.model == cell.model)
    kept: dict[int, PlannedCell] = {id(each): replace(each, questions=()) for each in (baseline, found)}
    option = cell.scheme.options.get("calibration")
    corpus = "" if option is None else str(option["corpus"])
    return replace(
        plan,
        cells=tuple(kept.values()),
        unsupported=(),
        texts={},
        calibrations={name: text for name, text in plan.calibrations.items() if name == corpus},
        task_folders={},
        checkpoints=(cell.origin.checkpoint,) if isinstance(cell.origin, Given) and cell.origin.checkpoint != cell.model else (),
    )


def _suite_of(run: Run) -> str | None:
    """The suite that the run file's command names."""
    found = [re.fullmatch(r"quant-harness run (.+)", command) for command in run.plan.commands]
    return next((each[1] for each in found if each is not None), None)
