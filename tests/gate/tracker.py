"""A local stand-in of the HTTP interfaces of GitHub and GitLab: issues, comments, labels, pages. It knows what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "ghp_a-secret-of-the-tests"


@dataclass
class State:
    """All issues that there ever were, and all comments by the number of their issue or pull request."""

    issues: list[dict[str, Any]] = field(default_factory=list)
    comments: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refuse: int = 0
    url: str = ""

    @property
    def open(self) -> list[dict[str, Any]]:
        return [issue for issue in self.issues if issue["state"] == "open"]

    def said(self, number: int) -> list[str]:
        return [comment["body"] for comment in self.comments.get(number, [])]


@contextlib.contextmanager
def standing_in() -> Iterator[State]:
    state = State()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, data: Any, status: int = 200) -> None:
            raw = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def _any(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            parts = urlsplit(self.path)
            state.asked.append(f"{self.command} {parts.path}")
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or self.headers.get("PRIVATE-TOKEN")
            if state.refuse or given != TOKEN:
                self._answer({"message": f"no: {given}"}, state.refuse or 401)
                return
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            self._answer(_respond(state, self.command, parts.path, query, body))

        do_GET = do_POST = do_PATCH = do_PUT = _any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _respond(state: State, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
    """GitHub below /repos/OWNER/NAME, GitLab below /projects/ID."""
    gitlab = path.startswith("/projects/")
    words = path.split("/")[3 if gitlab else 4 :]
    page = slice((int(query.get("page", 1)) - 1) * int(query.get("per_page", 30)), None)
    if words[0] == "issues" and len(words) == 1:
        if method == "GET":
            rows = [i for i in state.open if query.get("labels", "") in i["labels"]]
            return [_shown(i, gitlab) for i in rows[page][: int(query.get("per_page", 30))]]
        labels = body["labels"].split(",") if gitlab else body["labels"]
        text = body["description"] if gitlab else body["body"]
        issue = {"number": len(state.issues) + 1, "title": body["title"], "body": text, "labels": labels, "state": "open"}
        state.issues.append(issue)
        return _shown(issue, gitlab)
    if words[:2] == ["issues", "comments"]:
        (found,) = [c for comments in state.comments.values() for c in comments if c["id"] == int(words[2])]
        found.update(body)
        return found
    number = int(words[1])
    if len(words) >= 3:  # comments, notes
        comments = state.comments.setdefault(number, [])
        if method == "GET":
            return comments[page][: int(query.get("per_page", 30))]
        if method == "PUT":
            (found,) = [c for c in comments if c["id"] == int(words[3])]
            found.update(body)
            return found
        comments.append({"id": 1000 + sum(map(len, state.comments.values())), **body})
        return comments[-1]
    issue = state.issues[number - 1]
    issue["body"] = body.get("body", body.get("description", issue["body"]))
    issue["state"] = "closed" if body.get("state") == "closed" or body.get("state_event") == "close" else issue["state"]
    return _shown(issue, gitlab)


def _shown(issue: dict[str, Any], gitlab: bool) -> dict[str, Any]:
    return {"iid": issue["number"], "description": issue["body"], "title": issue["title"]} if gitlab else issue
