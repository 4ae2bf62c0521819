"""Requests to a server that somebody else runs, and nothing taken on trust: HTTP for the engine `endpoint`.

Promises: every failure is a `ServerTrouble` that says what happened in words; a reply is read up to a limit of bytes and of
seconds, however it trickles; what the server says is shortened and freed of control characters before it is shown, and the
token never appears in anything that is said. Redirects are not followed (they would carry the token elsewhere), proxies,
netrc and other surroundings are not read, compressed replies are refused (they may unfold without end).

Python's own `http.client` is enough for that, and does none of those by itself. The client that the default environment brings
(httpx2, with huggingface_hub 2) opens its connection inside the timed request, has one error for a server that is gone and one
that speaks nonsense, and takes four times the processor time for each streamed event (14 against 3 µs), in the very process that
times them. Here a connection is opened per request, before the clock of a timed request starts.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from harness.errors import ServerTrouble
from harness.spec import FailureKind

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 300.0
"""The longest wait for the next byte of a reply: a long prompt on a CPU takes minutes."""
REQUEST_SECONDS = 1800.0
MOST_BYTES = 64 << 20
"""A whole reply. Log-probabilities of 4,096 tokens take about 400 KB."""
MOST_EVENT_BYTES = 1 << 20
TRIES = 4
LONGEST_PAUSE_SECONDS = 20.0
"""A server that is busy (429, 503) is asked again, after what it says or 1, 2, 4 s, and no more than this."""


class Refused(ServerTrouble):
    """The server understood and does not want to (400, 422, ...): something in the request is not to its taste."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how much of one request; tests make them small."""

    connect_seconds: float = CONNECT_SECONDS
    silence_seconds: float = SILENCE_SECONDS
    request_seconds: float = REQUEST_SECONDS
    reply_bytes: int = MOST_BYTES
    event_bytes: int = MOST_EVENT_BYTES
    pause_seconds: float = LONGEST_PAUSE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One server: `url` as `methods/endpoint.py` checked it, the name of the environment variable that holds the token ('' for
    none). Safe for threads: it holds no connection."""

    url: str
    token_env: str = ""
    limits: Limits = field(default_factory=Limits)

    def get(self, path: str) -> object:
        """The JSON reply to a GET."""
        return self._answer("GET", path, None)

    def post(self, path: str, body: Mapping[str, object]) -> object:
        """The JSON reply to a POST; Refused where the server does not take the request as it is."""
        return self._answer("POST", path, body)

    def stream(self, path: str, body: Mapping[str, object]) -> Iterator[tuple[float, object]]:
        """(seconds since the request was sent, event) of a reply in server-sent events, until its [DONE] or its end."""
        connection, response, began = self._open("POST", path, body)
        with closing(connection), closing(response):  # either may hold the socket
            line = b""
            for chunk in self._chunks(response, began):
                now = time.perf_counter() - began
                *lines, line = (line + chunk).split(b"\n")
                if len(line) > self.limits.event_bytes:
                    raise self._trouble(f"it sent an event of more than {self.limits.event_bytes} bytes", "error")
                for one in lines:
                    kind, _, data = one.strip().partition(b":")
                    if kind != b"data" or not data.strip():
                        continue  # comments, names of events, blank lines between them
                    if data.strip() == b"[DONE]":
                        return
                    yield now, self._event(data)

    def _event(self, data: bytes) -> object:
        event = self._json(data)
        if isinstance(event, dict) and event.get("error"):
            raise self._trouble(f"it stopped with an error: {self._said(data)}", "error")
        return event

    def _answer(self, method: str, path: str, body: Mapping[str, object] | None) -> object:
        connection, response, began = self._open(method, path, body)
        with closing(connection), closing(response):  # either may hold the socket
            return self._json(b"".join(self._chunks(response, began)))

    # ------------------------------------------------------------------ one request

    def _open(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, float]:
        """An answered request with a good status, its body still unread, and when it was sent. A busy server is asked again."""
        for tried in range(1, TRIES + 1):
            connection, response, began = self._send(method, path, body)
            if 200 <= response.status < 300:
                coding = response.headers.get("Content-Encoding", "identity")
                if coding.strip().lower() != "identity":
                    response.close()
                    connection.close()
                    raise self._trouble(f"it compressed its reply ({_plain(coding)}), which it was asked not to do", "error")
                return connection, response, began
            with closing(connection), closing(response):  # either may hold the socket
                said = self._said(b"".join(self._chunks(response, began)))
            if response.status not in (429, 503) or tried == TRIES:
                raise self._refusal(response.status, path, said, tried)
            wish = response.headers.get("Retry-After", "")
            pause = float(wish) if re.fullmatch(r"\d{1,6}(\.\d{1,3})?", wish) else float(2 ** (tried - 1))
            time.sleep(min(pause, self.limits.pause_seconds))
        raise AssertionError("the loop returns or raises")

    def _send(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, float]:
        parts = urlsplit(self.url)
        host, limits = str(parts.hostname), self.limits
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(host, parts.port, timeout=limits.connect_seconds)
        headers = {"Accept": "application/json, text/event-stream", "Accept-Encoding": "identity", "User-Agent": "quant-harness"}
        headers |= {"Content-Type": "application/json"} if body is not None else {}
        token = self.token()
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.connect()
        except TimeoutError:
            raise self._trouble(f"no connection within {limits.connect_seconds:g} s; correct `url`", "environment") from None
        except OSError as error:
            raise self._broken(error) from None
        try:
            connection.sock.settimeout(limits.silence_seconds)
            began = time.perf_counter()
            connection.request(method, parts.path.rstrip("/") + path, body=data, headers=headers)
            return connection, connection.getresponse(), began
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._broken(error) from None

    def _chunks(self, response: http.client.HTTPResponse, began: float) -> Iterator[bytes]:
        """The body as it arrives, within the limits."""
        size = 0
        while True:
            try:
                chunk = response.read1(1 << 16)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._broken(error) from None
            if not chunk:
                if response.length:  # of a declared length, this much did not come
                    raise self._trouble("it ended its reply before the end", "environment")
                return
            size += len(chunk)
            if size > self.limits.reply_bytes:
                raise self._trouble(f"its reply is larger than {self.limits.reply_bytes} bytes", "error")
            if time.perf_counter() - began > self.limits.request_seconds:
                raise self._trouble(f"its reply took more than {self.limits.request_seconds:g} s", "timeout")
            yield chunk

    def _json(self, data: bytes) -> object:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            start = _plain(data[:80].decode("utf-8", errors="replace"))
            raise self._trouble(f"its reply is no JSON; it begins with {self._hidden(start)!r}", "error") from None

    # ------------------------------------------------------------------ the token, and what is said

    def token(self) -> str:
        """The token from its environment variable, '' where none is named. ServerTrouble if that is not set."""
        if not self.token_env:
            return ""
        token = os.environ.get(self.token_env, "").strip()
        if not token or not re.fullmatch(r"[\x21-\x7e]+", token):
            state = "holds characters that no token has" if token else "is not set"
            raise self._trouble(f"its token is asked for in ${self.token_env}, which {state}; export it, then run", "environment")
        return token

    def _hidden(self, text: str) -> str:
        token = os.environ.get(self.token_env, "").strip() if self.token_env else ""
        return text.replace(token, "[token]") if token else text

    def _said(self, data: bytes) -> str:
        """The message in an error's body, whatever its shape, fit to be shown."""
        text = data[:4096].decode("utf-8", errors="replace")
        try:
            said = json.loads(data)
            for key in ("error", "message", "detail"):
                said = said.get(key, said) if isinstance(said, dict) else said
            text = said if isinstance(said, str) else json.dumps(said)
        except (ValueError, RecursionError):
            pass
        return self._hidden(_plain(text))[:300]

    def _trouble(self, what: str, kind: FailureKind) -> ServerTrouble:
        return ServerTrouble(f"server {self.url}: {what}", kind)

    def _broken(self, error: Exception) -> ServerTrouble:
        if isinstance(error, TimeoutError):
            return self._trouble(f"no answer within {self.limits.silence_seconds:g} s; is it busy, or stuck?", "timeout")
        if isinstance(error, ssl.SSLError):
            return self._trouble(f"no secure connection: {_plain(str(error))}; http:// or https://?", "environment")
        if isinstance(error, (ConnectionRefusedError, ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)):
            return self._trouble("nobody answers there (connection refused or closed); start it, or correct `url`", "environment")
        if isinstance(error, OSError):
            return self._trouble(f"it cannot be reached: {_plain(str(error))}; correct `url`", "environment")
        name = type(error).__name__
        return self._trouble(f"what answers there does not speak HTTP as it should ({name})", "error")

    def _refusal(self, status: int, path: str, said: str, tried: int) -> ServerTrouble:
        words = f" ({said})" if said else ""
        if status in (401, 403):
            hint = (
                f"the token in ${self.token_env} is not accepted"
                if self.token_env
                else "it wants a token: name the environment variable that holds it with `token_env: NAME`"
            )
            return self._trouble(f"HTTP {status}{words}: {hint}", "environment")
        if status == 404:
            hint = f"it has no {path} below that url, or no model of that name; `url` usually ends with /v1"
            return Refused(f"server {self.url}: HTTP 404{words}: {hint}", "environment")
        if status in (429, 503):
            return self._trouble(f"HTTP {status}{words}: still busy after {tried} tries; ask again later", "environment")
        if 300 <= status < 400:
            return self._trouble(f"HTTP {status}: it sends elsewhere, which is not followed; correct `url`", "environment")
        if 400 <= status < 500:
            return Refused(f"server {self.url}: HTTP {status}{words}", "error")
        return Refused(f"server {self.url}: HTTP {status}{words}: its own log says more", "error")


def _plain(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
