"""A hub on the loopback address, as far as huggingface_hub and datasets ask one: revisions, lists of files, files, and what is
sent to it (uploads.py).

Repositories live in memory: commits with files, branches that name commits. A file is sent as the hub sends it: with its commit
and ETag, in the range that was asked for, gated and private ones only to the token that may see them. A large file is redirected
to another host (`localhost`), as the hub redirects to its storage, which has no business with a token. Every request is kept, so
that a test can say what was fetched; a connection can be made to break or to wait in the middle of a file.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from tests.hub import uploads

LFS_FROM = 4096
"""Files of so many bytes are kept in LFS, as the hub keeps large ones: their ETag is their SHA-256."""


@dataclass(kw_only=True)
class Repo:
    """`claimed`: sizes that the list of files tells, instead of the true ones. `summaries` of the commits that were sent."""

    access: Literal["public", "gated", "private"] = "public"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    claimed: dict[str, int] = field(default_factory=dict)
    summaries: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Adds a commit and moves the branch to it; returns its name."""
        said = json.dumps([len(self.commits), sorted((n, hashlib.sha1(b).hexdigest()) for n, b in files.items())])
        name = hashlib.sha1(said.encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


class Hub:
    """The hub's repositories by `models/OWNER/NAME` or `datasets/OWNER/NAME`, and what was asked of it."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.stored: dict[str, bytes] = {}
        """Large files that were sent and are in no commit yet, by their SHA-256."""
        self.cas: Path | None = None
        """The folder of its Xet storage; None: it has none."""
        self.sender: Path | None = None
        """The folder whose files are sent to that storage, which finds a file by a hash of its own and not by its SHA-256."""
        self.break_after: dict[str, int] = {}
        """Names of files whose next connection ends after so many bytes; not one for a part of the file."""
        self.hold: dict[str, int] = {}
        """Names of files that are sent up to so many bytes, and then no more until `released` is set; parts are not held."""
        self.held, self.released = threading.Event(), threading.Event()
        self.fails_with: int | None = None
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who asked was killed
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def model(self, repo: str) -> Repo:
        return self.repos.setdefault(f"models/{repo}", Repo())

    def data_set(self, repo: str) -> Repo:
        return self.repos.setdefault(f"datasets/{repo}", Repo())

    def sent(self, name: str) -> list[Request]:
        """The requests for the content of a file, whatever its commit."""
        large = any(len(r.get(name, b"")) >= LFS_FROM for repo in self.repos.values() for r in repo.commits.values())
        place = "/storage/" if large else "/resolve/"
        return [r for r in self.requests if r.method == "GET" and place in r.path and r.path.endswith("/" + name)]

    @contextmanager
    def running(self) -> Iterator[Hub]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(auth-check)|/(revision|tree|paths-info)/([^/]+)(/.*)?)?")
_STORAGE = re.compile(r"/storage/([0-9a-f]{64})/(.+)")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self) -> None:
        body = self._body()
        path = urllib.parse.urlsplit(self.path).path
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        said = Request(method=self.command, path=urllib.parse.unquote(path), range=self.headers.get("Range"), token=token)
        self.served.requests.append(said)
        if self.served.fails_with is not None:
            self._refuse(self.served.fails_with, "")
        elif (sent := uploads.ROUTE.fullmatch(path)) is not None:
            reply = uploads.answer(self.served, sent, body, token, LFS_FROM)
            if reply.body is None:
                self._refuse(reply.status, reply.code)
            else:
                self._json(reply.body, reply.status, reply.headers)
        elif (api := _API.fullmatch(path)) is not None:
            self._api(api, body, token)
        elif (file := _FILE.fullmatch(path)) is not None:
            self._file(file, token)
        elif (stored := _STORAGE.fullmatch(path)) is not None:
            self._stored(*stored.groups())
        else:
            self._refuse(404, "")

    def _repo(self, kind: str, name: str, token: str | None, *, content: bool) -> Repo | None:
        """The repository, where it may be seen by this token; what is refused is answered here. A gated one shows its list of
        files to all, its content only to those who were let in."""
        repo = self.served.repos.get(f"{kind}/{name}")
        if token is not None and token != self.served.token and not token.startswith("stranger"):
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        if repo is None or (repo.access == "private" and token != self.served.token):
            self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
            return None
        if repo.access == "gated" and content and token != self.served.token:
            self._refuse(401 if token is None else 403, "GatedRepo", f"Access to {name} is restricted")
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> str | None:
        wanted = urllib.parse.unquote(revision)
        name = repo.branches.get(wanted, wanted if wanted in repo.commits else None)
        if name is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {wanted}")
        return name

    def _api(self, asked: re.Match[str], body: bytes, token: str | None) -> None:
        kind, name, access, what, revision, below = asked.groups()
        repo = self._repo(kind, name, token, content=access is not None)
        commit = None if repo is None else self._commit(repo, revision or "main")
        if repo is None or commit is None:
            return
        files = repo.commits[commit]
        if what == "tree":
            inside = "" if below is None else urllib.parse.unquote(below).strip("/") + "/"
            if inside and not any(n.startswith(inside) for n in files):
                self._refuse(404, "EntryNotFound", "Path does not exist")
                return
            deep = "recursive=True" in self.path or "recursive=true" in self.path or "recursive=1" in self.path
            self._json(self._tree(repo, files, inside, deep=deep))
        elif what == "paths-info":
            form = urllib.parse.parse_qs(body.decode())
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else form.get("paths", [])
            entries = [*self._tree(repo, files, "", deep=True)]
            self._json([entry for entry in entries if entry["path"] in wanted])
        else:
            listed = [{"rfilename": n} for n in files]
            self._json({"id": name, "sha": commit, "siblings": listed, "private": repo.access == "private", "tags": []})

    def _tree(self, repo: Repo, files: Mapping[str, bytes], inside: str, *, deep: bool) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        folders: set[str] = set()
        for name, data in sorted(files.items()):
            if not name.startswith(inside):
                continue
            parts = name[len(inside) :].split("/")
            folders.update(inside + "/".join(parts[:n]) for n in range(1, len(parts)) if deep or n == 1)
            if deep or len(parts) == 1:
                size = repo.claimed.get(name, len(data))
                entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": _blob(data)}
                if len(data) >= LFS_FROM:
                    entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
                entries.append(entry)
        return [*({"type": "directory", "path": f, "size": 0, "oid": _blob(f.encode())} for f in sorted(folders)), *entries]

    def _file(self, asked: re.Match[str], token: str | None) -> None:
        data_set, name, revision, file = asked.groups()
        repo = self._repo("datasets" if data_set else "models", name, token, content=True)
        commit = None if repo is None else self._commit(repo, revision)
        if repo is None or commit is None:
            return
        data = repo.commits[commit].get(urllib.parse.unquote(file))
        if data is None:
            self._refuse(404, "EntryNotFound", "Entry not found", commit=commit)
            return
        if len(data) < LFS_FROM:
            self._content(urllib.parse.unquote(file), data, _blob(data), commit)
            return
        etag = hashlib.sha256(data).hexdigest()
        self.send_response(302)
        self.send_header("Location", f"{self.served.address.replace('127.0.0.1', 'localhost')}/storage/{etag}/{file}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _stored(self, etag: str, file: str) -> None:
        held = (data for repo in self.served.repos.values() for files in repo.commits.values() for data in files.values())
        data = next((d for d in held if len(d) >= LFS_FROM and hashlib.sha256(d).hexdigest() == etag), None)
        if data is None:
            self._refuse(404, "")
        else:
            self._content(urllib.parse.unquote(file), data, etag, None)

    def _content(self, file: str, data: bytes, etag: str, commit: str | None) -> None:
        start, end = _range(self.headers.get("Range"), len(data))
        self.send_response(200 if self.headers.get("Range") is None else 206)
        self.send_header("ETag", f'"{etag}"')
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if self.headers.get("Range") is not None:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command != "HEAD":
            self._send(file, data[start:end])

    def _send(self, file: str, data: bytes) -> None:
        whole = self.headers.get("Range") is None
        cut = self.served.break_after.pop(file, None) if whole else None
        if cut is not None:
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True  # the rest never comes
            return
        pause = self.served.hold.get(file) if whole else None
        if pause is not None:
            self.wfile.write(data[:pause])
            self.wfile.flush()
            self.served.held.set()
            self.served.released.wait(60)
            data = data[pause:]
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # who asked is gone

    def _json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, said in (headers or {}).items():
            self.send_header(name, said)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str = "", *, commit: str | None = None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _blob(data: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _range(wanted: str | None, size: int) -> tuple[int, int]:
    """First byte and end of a `Range` header."""
    if wanted is None:
        return 0, size
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return int(first), min(size, int(last) + 1) if last else size
