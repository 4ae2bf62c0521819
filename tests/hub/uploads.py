"""What a hub does with what is sent to it, as huggingface_hub sends it: a repository is made, large files go to the storage, a
commit of all of them follows. A hub with Xet storage (`Hub.cas`) hands out a token for it; its storage is a folder, which hf_xet
itself fills and reads. One without answers that it has no such page.

Every answer is what the hub's public API says; nothing is taken without a token that may write, and a commit that names another
parent than the branch has is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from tests.hub.server import Hub, Repo

ROUTE = re.compile(
    r"/api/(?:repos/(?P<create>create)|(?P<validate>validate-yaml)|models/(?P<name>[^/]+/[^/]+)/(?P<what>preupload|commit)/(?P<branch>[^/]+))"
    r"|/api/models/(?P<cas>[^/]+/[^/]+)/xet-write-token/[^/]+"
    r"|/(?P<lfs>[^/]+/[^/]+)\.git/info/lfs/objects/(?P<step>batch|verify)"
    r"|/upload/(?P<oid>[0-9a-f]{64})"
)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer: a status, its body, and the hub's own code of an error."""

    status: int
    body: object = None
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(hub: Hub, asked: re.Match[str], body: bytes, token: str | None, lfs_from: int) -> Reply:
    """The hub's answer to a request whose path `ROUTE` has matched."""
    if asked["oid"]:  # the address itself is what allows it, as in the hub's storage
        if hashlib.sha256(body).hexdigest() != asked["oid"]:
            return Reply(status=400)
        hub.stored[asked["oid"]] = body
        return Reply(status=200, body={})
    if token != hub.token:
        return Reply(status=401 if token is None else 403)
    if asked["create"]:
        return _created(hub, json.loads(body))
    if asked["validate"]:
        return _validated(json.loads(body)["content"])
    repo = hub.repos.get(f"models/{asked['name'] or asked['lfs'] or asked['cas']}")
    if repo is None:
        return Reply(status=404, code="RepoNotFound")
    if asked["cas"]:
        return _allowed(hub.cas)
    if asked["step"] == "batch":
        return Reply(status=200, body={"transfer": "basic", "objects": [_wanted(hub, o) for o in json.loads(body)["objects"]]})
    if asked["step"] == "verify":
        told = json.loads(body)
        kept = hub.stored.get(told["oid"])
        return Reply(status=200 if kept is not None and len(kept) == told["size"] else 404, body={})
    if asked["what"] == "preupload":
        files = json.loads(body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] >= lfs_from else "regular", "shouldIgnore": False} for f in files
        ]
        return Reply(status=200, body={"files": modes})
    return _committed(hub, repo, asked["name"], asked["branch"], body)


def _created(hub: Hub, wish: dict[str, object]) -> Reply:
    from tests.hub.server import Repo

    name = f"{wish['organization']}/{wish['name']}"
    if f"models/{name}" in hub.repos:
        return Reply(status=409)
    if name.startswith("others/"):
        return Reply(status=403)
    private = wish.get("private") is True or wish.get("visibility") == "private"
    repo = hub.repos[f"models/{name}"] = Repo(access="private" if private else "public")
    repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
    return Reply(status=200, body={"url": f"{hub.address}/{name}", "name": name, "id": name})


def _validated(card: str) -> Reply:
    """What the hub says of a card: its front matter has to be a mapping with a licence that is a word, tags that are words."""
    front = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", card)
    try:
        said = yaml.safe_load(front[2]) if front else {}
    except yaml.YAMLError as error:
        return Reply(status=400, body={"errors": [{"message": str(error)}], "warnings": []})
    wrong = not isinstance(said, dict) or not isinstance(said.get("license", ""), str)
    wrong = wrong or not all(isinstance(tag, str) for tag in said.get("tags", []))
    return Reply(status=400 if wrong else 200, body={"errors": [{"message": "no mapping"}] if wrong else [], "warnings": []})


def _allowed(cas: Path | None) -> Reply:
    """Where the Xet storage is, with a token for an hour."""
    if cas is None:
        return Reply(status=404)
    address, until = f"local://{cas}", int(time.time()) + 3600
    told = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "for-an-hour", "X-Xet-Token-Expiration": str(until)}
    return Reply(status=200, body={"casUrl": address, "accessToken": "for-an-hour", "exp": until}, headers=told)


def _from_storage(hub: Hub, oid: str) -> bytes:
    """A large file of a commit, from where it was sent to. The Xet storage finds it by the hash that hf_xet gives the sender's
    file, and is read from a copy, because whoever sends keeps a lock on it."""
    if oid in hub.stored:
        return hub.stored[oid]
    import hf_xet
    from huggingface_hub.utils._xet import get_xet_session

    assert hub.cas is not None, f"{oid} was not sent"
    assert hub.sender is not None
    (path,) = (p for p in hub.sender.iterdir() if hashlib.sha256(p.read_bytes()).hexdigest() == oid)
    copy = shutil.copytree(hub.cas, hub.cas.with_name(f"{hub.cas.name}-{oid}"))
    (known,), target = hf_xet.hash_files([str(path)]), copy / oid
    with get_xet_session().new_file_download_group(
        endpoint=f"local://{copy}", token="for-an-hour", token_expiry_unix_secs=int(time.time()) + 3600
    ) as group:
        group.start_download_file(hf_xet.XetFileInfo(known.hash, known.file_size), str(target))
    return target.read_bytes()


def _wanted(hub: Hub, wish: dict[str, object]) -> dict[str, object]:
    if wish["oid"] in hub.stored:
        return {**wish}
    actions = {
        "upload": {"href": f"{hub.address.replace('127.0.0.1', 'localhost')}/upload/{wish['oid']}"},
    }
    return {**wish, "actions": actions}


def _committed(hub: Hub, repo: Repo, name: str, branch: str, body: bytes) -> Reply:
    lines = [json.loads(line) for line in body.splitlines()]
    head = lines[0]["value"]
    parent = repo.branches.get(branch)
    if head.get("parentCommit") not in (None, parent):
        return Reply(status=412)
    files = dict(repo.commits[parent]) if parent else {}
    for line in lines[1:]:
        kind, value = line["key"], line["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = _from_storage(hub, value["oid"])
        elif kind == "deletedFile":
            del files[value["path"]]
        else:
            return Reply(status=400)
    commit = repo.commit(files, branch)
    repo.summaries[commit] = head["summary"]
    return Reply(status=200, body={"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit, "success": True})
