"""Puts a folder onto the hub as one commit of a model's repository. The only place that writes there.

The token is the library's affair, as in `hub.py`: it comes from HF_TOKEN or from `hf auth login`, and of what the library raises
only types and status codes enter a message. A repository that holds something is left alone unless somebody says `replace`; then
the commit takes the place of all its files, so that no shard of another artifact stays among them, and the former ones stay in
its history. Who commits in between is not overwritten: the commit names its parent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import files
from harness.errors import BadInput
from harness.models import hub

CHANGES_NUMBERS = False
"""It sends what was measured."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_THE_HUBS_OWN = (".gitattributes",)
"""What the hub puts into a new repository by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A commit that holds the folder, the page of its repository, and whether that was made for it."""

    commit: str
    page: str
    created: bool


def check(repo: str) -> None:
    """BadInput where nothing can be pushed to `repo`, as far as that is known without asking the hub."""
    from huggingface_hub import get_token

    if not _REPO.fullmatch(repo):
        raise BadInput(f"{repo[:100]!r} is no hub id; write OWNER/NAME")
    if hub.offline():
        raise BadInput(f"{repo}: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or export without --push")
    if not get_token():
        raise BadInput(f"{repo}: pushing needs a token that may write; set HF_TOKEN, or log in once with: hf auth login")


def push(folder: Path, repo: str, *, message: str, private: bool, replace: bool) -> Pushed:
    """Commits all files of `folder` to the model's repository `repo`, which is made where there is none, `private` or not.
    BadInput says what the hub refuses, and where it holds something already and `replace` does not say that it may go."""
    from huggingface_hub import HfApi

    check(repo)
    api = HfApi()
    try:
        with hub.no_bars():
            return _push(api, folder, repo, message=message, private=private, replace=replace)
    except BadInput:
        raise
    except Exception as error:  # the library's, its HTTP client's and the system's; each version has its own
        raise _refusal(error, repo) from None


def _push(api: Any, folder: Path, repo: str, *, message: str, private: bool, replace: bool) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    ours = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    parent, theirs, created = None, [], False
    try:
        there = api.repo_info(repo, repo_type="model")
        parent, theirs = there.sha, [file.rfilename for file in there.siblings or ()]
    except RepositoryNotFoundError:
        api.create_repo(repo, repo_type="model", private=private)
        created = True
    others = [name for name in theirs if name not in _THE_HUBS_OWN]
    if others and not replace:
        raise BadInput(
            f"{repo} holds {len(others)} file{'s' if len(others) > 1 else ''} already ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}); say --replace to put this export in their place (they stay in its history), "
            "or name another repository"
        )
    operations: list[object] = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in ours.items()]
    operations += [CommitOperationDelete(path_in_repo=name) for name in others if name not in ours]
    with _stored_as_there(repo):
        done = api.create_commit(repo, operations, commit_message=message, repo_type="model", parent_commit=parent)
    _check(api.list_repo_tree(repo, repo_type="model", revision=done.oid, recursive=True), ours, repo)
    return Pushed(commit=str(done.oid), page=f"{constants.ENDPOINT}/{repo}", created=created)


@contextmanager
def _stored_as_there(repo: str) -> Iterator[None]:
    """Inside, large files are sent to the hub's Xet storage where it has one, else as LFS files. The library takes Xet wherever
    its package is installed, and fails then on a hub without, which it calls unreachable."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers

    before = constants.HF_HUB_DISABLE_XET
    if not before:
        address = f"{constants.ENDPOINT}/api/models/{repo}/xet-write-token/main"
        constants.HF_HUB_DISABLE_XET = get_session().get(address, headers=build_hf_headers()).status_code == 404
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _check(tree: Any, ours: Mapping[str, Path], repo: str) -> None:
    """BadInput unless the hub holds the bytes that were sent, by its own digests."""
    from huggingface_hub.hf_api import RepoFile

    held = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    for name, path in ours.items():
        entry = held.get(name)
        if entry is None or not (_large(entry, path) if entry.lfs else entry.blob_id == _blob(path)):
            raise BadInput(f"{repo}: the hub holds another {name} than was sent; look at the repository, and push again")


def _large(entry: Any, path: Path) -> bool:
    return str(entry.lfs.sha256) == files.sha256(path)


def _blob(path: Path) -> str:
    """Git's name of a file's content, which is the hub's of a small file."""
    hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    files.sha256(path, copied=hasher.update)
    return hasher.hexdigest()


def _refusal(error: BaseException, repo: str) -> BadInput:
    """What the hub's answer means, and what to do."""
    from huggingface_hub import constants

    status = hub.status_of(error)
    if hub.no_answer(error):
        why = f"the hub at {constants.ENDPOINT} cannot be reached; connect, and push again"
    elif status == 401:
        why = "the hub refuses the token that it was sent; log in again with: hf auth login (or correct HF_TOKEN)"
    elif status in (403, 404):
        why = "your token may not write there; take one that may, or a repository of your own"
    elif status in (409, 412):
        why = "the repository has changed meanwhile; look at it, and push again"
    elif status is not None:
        why = f"the hub answers {status}; try again later"
    else:
        why = f"it cannot be pushed ({type(error).__name__}); try again"
    return BadInput(f"{repo}: {why}")
