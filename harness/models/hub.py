"""The hub: which commit a revision names, which files a repository has, and fetching those that are asked for.

All of it goes through huggingface_hub, which reads address (`HF_ENDPOINT`), place of the cache (`HF_HOME`), offline mode
(`HF_HUB_OFFLINE`) and token (`HF_TOKEN`, or `hf auth login`) from the environment. A token is never held, written or shown here:
of what the library raises, only types and status codes enter a message.

A revision is resolved to a commit once, when a suite is planned. Everything after that names the commit, so that a branch that
moves meanwhile changes nothing of a run, and the next run asks anew.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from harness.errors import BadInput

Kind = Literal["model", "dataset"]

Fetching = Callable[[str, int, int], None]
"""Is told now and then, while files are fetched: what, bytes that are here, bytes in all."""


def quiet(what: str, done: int, total: int) -> None:
    """A `Fetching` that tells nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A repository at a commit (40 hexadecimal digits)."""

    repo: str
    commit: str
    kind: Kind = "model"

    @property
    def folder(self) -> Path:
        """Where its files lie in the local cache; of a snapshot that was never fetched, where they would."""
        return self.storage / "snapshots" / self.commit

    @property
    def storage(self) -> Path:
        """Its repository's folder in the local cache."""
        from huggingface_hub.file_download import repo_folder_name

        return cache() / str(repo_folder_name(repo_id=self.repo, repo_type=self.kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a snapshot. `blob` is the name under which the local cache keeps its bytes, for all commits that share them."""

    name: str
    bytes: int
    blob: str


def cache() -> Path:
    """The local cache of the hub's library, which other programs share."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def offline() -> bool:
    """Whether the environment says that the hub is not to be asked (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def commit(repo: str, revision: str | None, *, kind: Kind = "model", what: str) -> str | None:
    """The commit that a branch or tag names now (None: the default branch). Where the hub cannot be reached, the one that the
    local cache remembers; None where it remembers none. `what` begins a message: "model 'mine'". BadInput says what the hub
    refuses."""
    check_address()
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import HFValidationError, RevisionResolutionError

    try:
        resolved = resolve_revision(repo, revision=revision, repo_type=kind, local_files_only=offline())
    except RevisionResolutionError:
        return None
    except HFValidationError:
        raise BadInput(f"{what}: {repo!r} is no hub id; write OWNER/NAME") from None
    except Exception as error:  # the library's, its HTTP client's and the system's; each version has its own
        raise refusal(error, repo, revision, kind=kind, what=what) from None
    return str(resolved.resolved)


def check_access(repo: str, *, kind: Kind, what: str) -> None:
    """BadInput where the hub does not give the content of a repository whose name and list of files it shows: a gated one. Says
    nothing where the hub cannot be asked."""
    from huggingface_hub import HfApi

    if offline():
        return
    try:
        HfApi().auth_check(repo, repo_type=kind)
    except Exception as error:  # see `commit`
        if not no_answer(error):
            raise refusal(error, repo, None, kind=kind, what=what) from None


def unreachable(repo: str, *, what: str, instead: str) -> BadInput:
    """What is said where the cache does not hold what the hub would have to be asked for."""
    why = why_silent()
    then = "unset it" if offline() else "connect"
    return BadInput(f"{what}: {repo} is not (or not whole) in the local cache {cache()}, and {why}; {then}, or {instead}")


def why_silent() -> str:
    """Why the hub was not asked or did not answer."""
    return "HF_HUB_OFFLINE is set" if offline() else "the hub cannot be reached"


def check_address() -> None:
    """BadInput for an address in `HF_ENDPOINT` that is none: the library would take the hub for one that cannot be reached."""
    from huggingface_hub import constants

    address = str(constants.ENDPOINT)
    if not re.match(r"https?://[^/\s]", address):
        host = address.rpartition("@")[2].strip("/ ") or "HOST"  # what stands before an @ may be a secret
        raise BadInput(f"HF_ENDPOINT is no address of a hub: it begins with http:// or https://; write HF_ENDPOINT=http://{host}")


LOCAL_MODEL = "give a local folder: models: [{path: ./folder}]"


def files(snapshot: Snapshot, *, what: str) -> Mapping[str, HubFile] | None:
    """The files of a snapshot by name, from the cache where a fetch has left the list; None where it is not there and the hub
    cannot be reached. BadInput says what the hub refuses."""
    try:
        return _listed(snapshot)
    except Exception as error:  # see `commit`
        if no_answer(error):
            return None
        raise refusal(error, snapshot.repo, snapshot.commit, kind=snapshot.kind, what=what) from None


@functools.lru_cache(maxsize=64)  # a commit never changes
def _listed(snapshot: Snapshot) -> Mapping[str, HubFile]:
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        entries = get_cached_repo_tree(snapshot.repo, repo_type=snapshot.kind, revision=snapshot.commit)
    except CachedRepoTreeNotFoundError:
        entries = HfApi().list_repo_tree(snapshot.repo, repo_type=snapshot.kind, revision=snapshot.commit, recursive=True)
    return {
        entry.path: HubFile(name=entry.path, bytes=entry.size, blob=entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def lacking(snapshot: Snapshot, wanted: Sequence[HubFile]) -> int:
    """Bytes of the wanted files that have to be fetched: those whose bytes no commit in the cache shares."""
    blobs = snapshot.storage / "blobs"
    missing = {f.blob: f.bytes for f in wanted if not ((blobs / f.blob).exists() or (snapshot.folder / f.name).exists())}
    return sum(missing.values())


def fetch(snapshot: Snapshot, wanted: Sequence[str], *, what: str, tell: Fetching = quiet, instead: str = LOCAL_MODEL) -> Path:
    """Fetches the wanted files, those that are not in the local cache; returns the snapshot's folder.

    A connection that breaks is taken up again where it broke. Files that are whole stay when a fetch is stopped; the next one
    goes on with the others. BadInput says why they cannot be had.
    """
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in wanted]
    known = files(snapshot, what=what) or {}
    sizes = [known[name] for name in wanted if name in known]
    try:
        with _watched(snapshot, sizes, what, tell):
            folder = snapshot_download(
                snapshot.repo, repo_type=snapshot.kind, revision=snapshot.commit, allow_patterns=patterns, max_workers=4
            )
    except Exception as error:  # see `commit`
        if no_answer(error):
            raise unreachable(snapshot.repo, what=what, instead=instead) from None
        raise refusal(error, snapshot.repo, snapshot.commit, kind=snapshot.kind, what=what) from None
    return Path(str(folder))


def one(snapshot: Snapshot, name: str, *, what: str) -> Path | None:
    """One small file of a snapshot; None where it is not in the cache and the hub cannot be reached."""
    from huggingface_hub import hf_hub_download

    try:
        with no_bars():
            return Path(str(hf_hub_download(snapshot.repo, name, repo_type=snapshot.kind, revision=snapshot.commit)))
    except Exception as error:  # see `commit`
        if no_answer(error):
            return None
        raise refusal(error, snapshot.repo, snapshot.commit, kind=snapshot.kind, what=what) from None


def tensors(snapshot: Snapshot, names: Sequence[str], *, what: str) -> dict[str, tuple[str, list[int]]]:
    """Every tensor of safetensors files: name -> (dtype, shape). Only their headers are fetched."""
    from huggingface_hub import HfApi

    api = HfApi()

    def header(name: str) -> dict[str, tuple[str, list[int]]]:
        read = api.parse_safetensors_file_metadata(snapshot.repo, name, revision=snapshot.commit)
        return {tensor: (info.dtype, list(info.shape)) for tensor, info in read.tensors.items()}

    try:
        with ThreadPoolExecutor(max_workers=8) as pool:
            return {name: entry for part in pool.map(header, names) for name, entry in part.items()}
    except Exception as error:  # see `commit`
        raise refusal(error, snapshot.repo, snapshot.commit, kind=snapshot.kind, what=what) from None


@contextlib.contextmanager
def beginning(snapshot: Snapshot, name: str, *, what: str, block: int = 1 << 20) -> Iterator[BinaryIO]:
    """A file of a repository to read from: only the parts that are read are fetched, in blocks of `block` bytes."""
    from huggingface_hub import HfFileSystem

    place = f"{'datasets/' if snapshot.kind == 'dataset' else ''}{snapshot.repo}@{snapshot.commit}/{name}"
    try:
        with HfFileSystem(skip_instance_cache=True).open(place, "rb", block_size=block) as file:
            yield cast(BinaryIO, file)
    except BadInput:
        raise
    except Exception as error:  # see `commit`
        raise refusal(error, snapshot.repo, snapshot.commit, kind=snapshot.kind, what=what) from None


def rows(repo: str, config: str | None, commit: str, *, load: Callable[..., Any], **options: Any) -> Any:
    """What `datasets.load_dataset` (given as `load`) gives of a data set at a commit.

    Offline, that library takes the newest rows that it has of the data set, whatever is asked for: ValueError where these are of
    another commit."""
    held = load(repo, config, revision=commit, **options)
    for part in held.values() if isinstance(held, dict) else [held]:
        for file in getattr(part, "cache_files", None) or []:
            if commit not in Path(file["filename"]).parts:
                raise ValueError(f"the rows of {repo} in the local cache are not those of its commit {commit}")
    return held


def refusal(error: BaseException, repo: str, revision: str | None, *, kind: Kind, what: str) -> BadInput:
    """What the hub's answer means, and what to do. The library's own text is left out: it may quote a signed address."""
    from huggingface_hub import constants, errors

    page = _page(repo, kind)
    thing = "data set" if kind == "dataset" else "model"
    status = status_of(error)
    if isinstance(error, errors.GatedRepoError):
        if status == 403:
            why = f"{repo} is gated, and your token has no access to it; ask for it at {page}, and run again when you have it"
        else:
            why = (
                f"{repo} is gated: it is given to those who accept its conditions; open {page}, accept them, and log in once "
                "with: hf auth login (or set HF_TOKEN)"
            )
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"{repo} has no revision {revision!r}; its branches and tags are listed at {page}/tree/main"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = (
            f"the hub at {constants.ENDPOINT} has no {thing} {repo}, or it is private and you are not logged in; check the id, "
            "and for a private one log in once with: hf auth login (or set HF_TOKEN)"
        )
    elif status == 401:
        why = f"the hub refuses the token that it was sent for {repo}; log in again with: hf auth login (or correct HF_TOKEN)"
    elif status is not None:
        why = f"the hub answers {status} for {repo}; try again later"
    elif getattr(error, "errno", None) == errno.ENOSPC:
        why = f"no space left for {repo} in {cache()}; free some, or move the cache with HF_HOME=DIR"
    else:
        why = f"{repo} cannot be fetched ({type(error).__name__}); what is fetched already is kept: run again to go on"
    return BadInput(f"{what}: {why}")


def refusal_of_data(error: BaseException, repo: str, *, what: str, instead: str) -> BadInput:
    """As `refusal`, of what `datasets` raises: its own errors in the place of the hub's."""
    if no_answer(error):
        return unreachable(repo, what=what, instead=instead)
    return BadInput(f"{what}: {repo} cannot be fetched ({type(error).__name__}); look at {_page(repo, 'dataset')}, or {instead}")


def _page(repo: str, kind: Kind) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"


def status_of(error: BaseException) -> int | None:
    """The status of the hub's answer, also where the library raises another error because of it."""
    for one_error in (error, error.__cause__):
        answer = getattr(one_error, "response", None)
        if answer is not None:
            return int(answer.status_code)
    return None


def no_answer(error: BaseException) -> bool:
    """Whether the hub was not asked or gave no answer at all: the library says so by an entry that it finds nowhere."""
    from huggingface_hub import errors

    if status_of(error) is not None:
        return False
    lost = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return isinstance(error, lost) or type(error).__name__ in ("ConnectError", "ConnectTimeout", "ReadTimeout")


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """The library draws no progress of its own meanwhile."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


TELL_SECONDS = 0.5


@contextlib.contextmanager
def _watched(snapshot: Snapshot, wanted: Sequence[HubFile], what: str, tell: Fetching) -> Iterator[None]:
    """Tells how much is here while files are fetched, by their sizes on disk: the ways in which the library fetches differ, and
    what it writes does not. Nothing is told where nothing is missing."""
    if not lacking(snapshot, wanted):
        with no_bars():
            yield
        return
    total = sum(f.bytes for f in {f.blob: f for f in wanted}.values())
    blobs = snapshot.storage / "blobs"
    stop = threading.Event()

    def here() -> int:
        return min(total, sum(_written(blobs, f) for f in {f.blob: f for f in wanted}.values()))

    def watch() -> None:
        while not stop.wait(TELL_SECONDS):
            tell(what, here(), total)

    watcher = threading.Thread(target=watch, daemon=True)
    tell(what, here(), total)
    watcher.start()
    try:
        with no_bars():
            yield
    finally:
        stop.set()
        watcher.join()
    tell(what, total, total)


def _written(blobs: Path, file: HubFile) -> int:
    """Bytes of a file that are on disk, whole or as a part."""
    sizes = [0]
    for path in blobs.glob(f"{glob.escape(file.blob)}*"):
        with contextlib.suppress(OSError):  # a part becomes the file meanwhile
            sizes.append(path.stat().st_size)
    return min(max(sizes), file.bytes)
