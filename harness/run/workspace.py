"""The cache on disk: where it is, whether the matrix fits into it, what killed invocations left in it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from harness import files
from harness.artifact import MANIFEST
from harness.errors import BadInput
from harness.formats import gguf_reader
from harness.measure import machine
from harness.methods import METHODS
from harness.models import find, hub
from harness.spec import Quantized, digest
from harness.suite.plan import Plan


def default_cache() -> Path:
    """`$QUANT_HARNESS_CACHE`, else `$XDG_CACHE_HOME/quant-harness`, else `~/.cache/quant-harness`."""
    named = os.environ.get("QUANT_HARNESS_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quant-harness"


def whole(artifact: Path, model_dir: Path) -> bool:
    """Whether an artifact is complete, and its links, if any, lead to this model's files: a checkpoint may have moved."""
    if not (artifact / MANIFEST).is_file():
        return False
    links = [p for p in artifact.iterdir() if p.is_symlink()]
    if gguf_reader.is_gguf(model_dir):  # a model in one file
        return all(p.resolve() == model_dir.resolve() and p.exists() for p in links)
    return all(p.resolve() == (model_dir / p.name).resolve() and p.exists() for p in links)


def check_writable(folder: Path, option: str) -> None:
    """BadInput for a folder in which nothing can be written, there already or to be made; `option` names another one. Leaves
    nothing behind."""
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    try:
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is a file" if above.exists() else "is a link to nothing", str(above))
        with tempfile.TemporaryDirectory(dir=above, prefix=".draft-"):
            pass
    except OSError as error:
        why = f"{above} {error.strerror}" if isinstance(error, NotADirectoryError) else f"{error.strerror} in {above}"
        raise BadInput(f"{folder}: cannot be written ({why}); choose another folder with {option} DIR") from None


def check_disk(plan: Plan, cache: Path) -> None:
    """BadInput when the cache cannot be written or the matrix's artifacts cannot fit on its disk."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the cache folder {cache} cannot be made ({error.strerror}); choose another with --cache DIR") from None
    need, have = _artifact_bytes(plan), machine.free_disk_bytes(cache)
    if need > have:
        raise BadInput(
            f"the artifacts of this matrix need about {need / 1e9:.1f} GB and {cache} has {have / 1e9:.1f} GB free: no space "
            "left on that disk; free some, choose another disk with --cache DIR, or take cells out of the suite"
        )
    _check_downloads(plan, cache, need)


def _artifact_bytes(plan: Plan) -> int:
    made = [p for p in plan.cells if isinstance(p.cell.origin, Quantized) and not METHODS[p.cell.method].unquantized]
    return sum({digest([p.cell.model, p.cell.origin]): p.estimated_bytes or 0 for p in made}.values())


def _check_downloads(plan: Plan, cache: Path, artifacts: int) -> None:
    """BadInput when what is to be fetched and what is to be made do not fit on their disks, or not together on the one they
    share."""
    downloads = {m.name: size for m in plan.models if (size := find.bytes_to_fetch(m))}
    if not downloads:
        return
    place, need = hub.cache(), sum(downloads.values())
    have, shared = machine.free_disk_bytes(place), machine.same_disk(place, cache)
    if need + (artifacts if shared else 0) > have:
        also = f" (with the artifacts {(need + artifacts) / 1e9:,.1f} GB)" if shared and artifacts else ""
        raise BadInput(
            f"{', '.join(downloads)}: {need / 1e9:,.1f} GB{also} are still to be fetched, and {place} has {have / 1e9:,.1f} GB "
            "free; free some, name a folder on another disk with HF_HOME=DIR, or take models out of the suite"
        )


def sweep(cache: Path) -> None:
    """Removes what killed invocations left: job folders and drafts named by a process that is no more."""
    jobs = {folder: folder.name.split("-")[0] for folder in cache.glob("jobs/*")}
    left = {folder: int(pid) for folder, pid in jobs.items() if pid.isdigit()}
    drafts = (*cache.glob(".draft-*"), *cache.glob("*/.draft-*"), *cache.glob("sampled/*/.draft-*"))
    left |= {draft: pid for draft in drafts if (pid := files.drafted_by(draft)) is not None}
    for path, pid in left.items():
        if _alive(pid):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process
    return True
