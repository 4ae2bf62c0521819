"""Issues and comments at GitHub and at GitLab, by their HTTP interfaces; the few calls that a night needs.

The token is read from an environment variable when a request is made, is sent to that one server only (no redirect is followed,
no proxy read), and is in nothing that is said.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import SplitResult, quote, urlsplit

from harness.announce.issues import LABEL, Action, Close, Issue, Open, Update
from harness.errors import BadInput, HarnessError
from harness.spec import Json

SECONDS = 30.0
PAGE, MOST_PAGES = 100, 20
MOST_BYTES = 16 << 20


class TrackerTrouble(HarnessError):
    """A tracker that cannot be reached, or does not do what it is asked."""


class Tracker(Protocol):
    """Where issues are, and comments on a proposed change."""

    def issues(self) -> list[Issue]:
        """The open issues with our label."""

    def do(self, action: Action) -> str:
        """Carries an action out; says in words what was done."""

    def comment(self, number: int, body: str, marker: str) -> str:
        """Puts a comment on a pull request, in the place of the one that begins with `marker`, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One server: its address, the name of the variable that holds the token, and how the token is sent."""

    url: str
    token_env: str
    header: str
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.password:
            raise BadInput(f"{parts.hostname}: a tracker's address has the form https://HOST/PATH, with no user in it")
        if parts.scheme == "http" and not local:
            raise BadInput(f"{parts.hostname}: a token is not sent without encryption; use https://")

    def call(self, method: str, path: str, body: Json = None) -> Json:
        """The reply's JSON; None where it is empty. TrackerTrouble says what was answered, without the token."""
        token = os.environ.get(self.token_env, "")
        if not token:
            raise BadInput(f"the variable {self.token_env} is empty; it holds the token with which issues are written")
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise BadInput(f"the variable {self.token_env} holds what cannot be a token (spaces, line ends or other characters)")
        parts = urlsplit(self.url)
        connection = _connection(parts)
        headers = {
            "User-Agent": "quant-harness",
            "Content-Type": "application/json",
            **self.headers,
            self.header: f"{self.prefix}{token}",
        }
        what = f"{method} {path.partition('?')[0]}"
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, parts.path.rstrip("/") + path, data, headers)
            reply = connection.getresponse()
            raw = reply.read(MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise TrackerTrouble(f"{parts.hostname} cannot be reached for {what}: {type(error).__name__}") from None
        finally:
            connection.close()
        if not 200 <= reply.status < 300:
            hint = "; the token may not do this: it needs to write issues and comments" if reply.status in (401, 403, 404) else ""
            raise TrackerTrouble(f"{parts.hostname} answered {reply.status} to {what}{hint}")
        try:
            return json.loads(raw) if raw.strip() else None
        except ValueError:
            raise TrackerTrouble(f"{parts.hostname} did not answer {what} with JSON") from None

    def rows(self, path: str) -> Iterator[dict[str, Json]]:
        """Every row of a list, page by page."""
        for page in range(1, MOST_PAGES + 1):
            rows = self.call("GET", f"{path}{'&' if '?' in path else '?'}per_page={PAGE}&page={page}")
            if not isinstance(rows, list):
                raise TrackerTrouble(f"GET {path.partition('?')[0]} was not answered with a list")
            yield from (row for row in rows if isinstance(row, dict))
            if len(rows) < PAGE:
                return


def _connection(parts: SplitResult) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "http":  # this machine's own, see above
        return http.client.HTTPConnection(host, parts.port, timeout=SECONDS)
    return http.client.HTTPSConnection(host, parts.port, timeout=SECONDS, context=ssl.create_default_context())


@dataclass(frozen=True, slots=True, kw_only=True)
class GitHub:
    """`repository`: OWNER/NAME."""

    repository: str
    api: Api

    @classmethod
    def at(cls, repository: str, url: str = "") -> GitHub:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise BadInput(f"{repository!r} is no repository at GitHub; write OWNER/NAME")
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        place = url or os.environ.get("GITHUB_API_URL") or "https://api.github.com"
        api = Api(url=place, token_env="GITHUB_TOKEN", header="Authorization", prefix="Bearer ", headers=headers)
        return cls(repository=repository, api=api)

    def issues(self) -> list[Issue]:
        rows = self.api.rows(f"{self._root}/issues?state=open&labels={quote(LABEL)}")
        return [Issue(number=int(r["number"]), body=str(r.get("body") or "")) for r in rows if "pull_request" not in r]

    def do(self, action: Action) -> str:
        match action:
            case Open():
                made = self.api.call(
                    "POST", f"{self._root}/issues", {"title": action.title, "body": action.body, "labels": [LABEL]}
                )
                return f"opened #{made['number']}: {action.title}"
            case Update():
                self.api.call("PATCH", f"{self._root}/issues/{action.number}", {"body": action.body})
                if action.comment:
                    self.api.call("POST", f"{self._root}/issues/{action.number}/comments", {"body": action.comment})
                return f"brought #{action.number} up to date"
            case Close():
                self.api.call("POST", f"{self._root}/issues/{action.number}/comments", {"body": action.comment})
                self.api.call("PATCH", f"{self._root}/issues/{action.number}", {"state": "closed", "state_reason": "completed"})
                return f"closed #{action.number}"

    def comment(self, number: int, body: str, marker: str) -> str:
        ours = [r for r in self.api.rows(f"{self._root}/issues/{number}/comments") if str(r.get("body") or "").startswith(marker)]
        if ours:
            self.api.call("PATCH", f"{self._root}/issues/comments/{int(ours[0]['id'])}", {"body": body})
            return f"brought the comment on #{number} up to date"
        self.api.call("POST", f"{self._root}/issues/{number}/comments", {"body": body})
        return f"commented on #{number}"

    @property
    def _root(self) -> str:
        return f"/repos/{self.repository}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GitLab:
    """`project`: its number, or GROUP/NAME."""

    project: str
    api: Api

    @classmethod
    def at(cls, project: str, url: str = "") -> GitLab:
        place = url or os.environ.get("CI_API_V4_URL") or "https://gitlab.com/api/v4"
        return cls(project=project, api=Api(url=place, token_env="GITLAB_TOKEN", header="PRIVATE-TOKEN"))

    def issues(self) -> list[Issue]:
        rows = self.api.rows(f"{self._root}/issues?state=opened&labels={quote(LABEL)}")
        return [Issue(number=int(r["iid"]), body=str(r.get("description") or "")) for r in rows]

    def do(self, action: Action) -> str:
        match action:
            case Open():
                fields = {"title": action.title, "description": action.body, "labels": LABEL}
                made = self.api.call("POST", f"{self._root}/issues", fields)
                return f"opened #{made['iid']}: {action.title}"
            case Update():
                self.api.call("PUT", f"{self._root}/issues/{action.number}", {"description": action.body})
                if action.comment:
                    self.api.call("POST", f"{self._root}/issues/{action.number}/notes", {"body": action.comment})
                return f"brought #{action.number} up to date"
            case Close():
                self.api.call("POST", f"{self._root}/issues/{action.number}/notes", {"body": action.comment})
                self.api.call("PUT", f"{self._root}/issues/{action.number}", {"state_event": "close"})
                return f"closed #{action.number}"

    def comment(self, number: int, body: str, marker: str) -> str:
        notes = f"{self._root}/merge_requests/{number}/notes"
        ours = [r for r in self.api.rows(notes) if str(r.get("body") or "").startswith(marker)]
        if ours:
            self.api.call("PUT", f"{notes}/{int(ours[0]['id'])}", {"body": body})
            return f"brought the comment on !{number} up to date"
        self.api.call("POST", notes, {"body": body})
        return f"commented on !{number}"

    @property
    def _root(self) -> str:
        return f"/projects/{quote(self.project, safe='')}"
