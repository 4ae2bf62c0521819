"""A small server that speaks as much of the OpenAI API as real ones do, over a tiny torch model, and answers exactly.

`Served` starts it on a free port of the loopback; its keywords say what kind of server it plays. `Canned` sends the same bytes to
whoever asks: for replies that no sound server sends.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

NAME = "tiny-q4"


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle of a reply is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.owner.get(self)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.owner.post(self, json.loads(data))

    def reply(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def events(self, rows: Iterator[Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for row in rows:
            data = b"data: " + (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


class _Running:
    wanted_port = 0

    def __enter__(self) -> Any:
        self.http = _Http(("127.0.0.1", self.wanted_port), _Handler)
        self.http.owner = self  # type: ignore[attr-defined]
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class Served(_Running):
    """`by_ids`: takes prompts as token ids. `adds_bos`: puts BOS before text. `echoes`: gives log-probabilities of prompts.
    `names_ids`: names tokens by id where asked to, as vLLM does. `counts`: gives `usage`. `token`: who asks must show it.
    `busy`: this many requests are turned away first. `shifts`: a server whose log-probabilities depend on what comes after.
    `late`: one that says of each token how likely it is after itself, as llama-cpp-python does without BOS.
    `penalizes`: what was said before becomes unlikely, unless asked not to.
    `strict`: unknown fields are refused. `breaks_off`: streams end after this many pieces."""

    def __init__(self, model: Any, tokenizer: Any, **kind: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.by_ids, self.adds_bos = kind.pop("by_ids", True), kind.pop("adds_bos", False)
        self.echoes, self.names_ids, self.counts = kind.pop("echoes", True), kind.pop("names_ids", True), kind.pop("counts", True)
        self.token, self.busy, self.shifts = kind.pop("token", ""), kind.pop("busy", 0), kind.pop("shifts", 0.0)
        self.strict, self.breaks_off = kind.pop("strict", False), kind.pop("breaks_off", None)
        self.late, self.penalizes = kind.pop("late", False), kind.pop("penalizes", False)
        self.misreads, self.pause = kind.pop("misreads", 0), kind.pop("pause", 0.0)
        assert not kind, kind
        self.asked: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.lock, self.count = threading.Lock(), threading.Lock()

    def get(self, http: _Handler) -> None:
        if self._stranger(http):
            return
        http.reply({"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "tests", "max_model_len": 256}]})

    def _stranger(self, http: _Handler) -> bool:
        said = http.headers.get("Authorization", "")
        if self.token and said != f"Bearer {self.token}":
            http.reply({"error": {"message": f"Incorrect API key provided: {said.removeprefix('Bearer ')}"}}, 401)
            return True
        return False

    def post(self, http: _Handler, body: dict[str, Any]) -> None:
        if self._stranger(http):
            return
        with self.count:
            self.asked.append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            busy, self.busy = self.busy > 0, max(0, self.busy - 1)
        try:
            if busy:
                http.reply({"error": {"message": "too many requests"}}, 429, {"Retry-After": "0"})
            elif http.path != "/v1/completions" or body["model"] != NAME:
                http.reply({"detail": "Not Found"}, 404)
            elif self.strict and set(body) & {"ignore_eos", "repeat_penalty", "repetition_penalty"}:
                http.reply({"error": {"message": "extra fields not permitted"}}, 400)
            elif not isinstance(body["prompt"], str) and not self.by_ids:
                http.reply({"error": {"message": "prompt: Input should be a valid string"}}, 422)
            else:
                self._complete(http, body)
        finally:
            with self.count:
                self.at_once -= 1

    def ids(self, prompt: Any) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.bos_token_id, *ids] if self.adds_bos else ids

    def _complete(self, http: _Handler, body: dict[str, Any]) -> None:
        ids = self.ids(body["prompt"])
        pieces = self._pieces(ids, body)
        usage = {"prompt_tokens": len(ids) + self.misreads}
        if body.get("stream"):
            http.events(self._stream(pieces, usage))
            return
        text = "".join(piece for piece, _ in pieces)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
        if body.get("echo") and self.echoes:
            choice |= {"text": self.tokenizer.decode(ids) + text, "logprobs": self.logprobs(ids, body)}
        http.reply({"id": "1", "object": "text_completion", "choices": [choice], **({"usage": usage} if self.counts else {})})

    def _forward(self, ids: list[int]) -> torch.Tensor:
        with self.lock, torch.inference_mode():
            return torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)

    def _pieces(self, ids: list[int], body: dict[str, Any]) -> list[tuple[str, int]]:
        """(text, token) of each new token, stopped as the API says: the stop string is no part of the text."""
        new: list[int] = []
        pieces: list[tuple[str, int]] = []
        before = ""
        while len(new) < body["max_tokens"]:
            scores = self._forward([*ids, *new])[-1].clone()
            if self.penalizes and body.get("repeat_penalty") != 1:
                scores[[*ids, *new]] -= 100.0
            token = int(scores.argmax())
            if token == self.tokenizer.eos_token_id and not body.get("ignore_eos"):
                break
            new.append(token)
            text = self.tokenizer.decode(new)
            cut = min((text.find(stop) for stop in body.get("stop") or () if stop in text), default=None)
            if cut is not None:  # a piece that was said already may hold the stop string's beginning: real servers hold it back
                return [(text[:cut], token)]
            pieces.append((text[len(before) :], token))
            before = text
        return pieces

    def _stream(self, pieces: list[tuple[str, int]], usage: dict[str, int]) -> Iterator[Any]:
        for number, (piece, _) in enumerate(pieces):
            if number == self.breaks_off:
                return
            time.sleep(self.pause)
            yield {"choices": [{"index": 0, "text": piece, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
        if self.counts:
            yield {"choices": [], "usage": {**usage, "completion_tokens": len(pieces)}}
        yield b"[DONE]"

    def logprobs(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        """As vLLM and llama-cpp-python lay them out: the first token has none, the top ones are a mapping from text."""
        scores = self._forward(ids)
        named = body.get("return_tokens_as_token_ids") and self.names_ids

        def name(token: int) -> str:
            return f"token_id:{token}" if named else str(self.tokenizer.decode([token]))

        values: list[Any] = [None]
        tops: list[Any] = [None]
        for place in range(1, len(ids)):
            row = scores[place if self.late else place - 1]
            best = int(row.argmax())
            values.append(float(row[ids[place]]) - self.shifts * (len(ids) - place))
            # the mapping is from texts: distinct tokens of one text would hide each other, so the larger value stays
            found = {name(ids[place]): float(row[ids[place]])}
            found[name(best)] = max(float(row[best]), found.get(name(best), -1e9))
            tops.append(found)
        last = int(scores[-1].argmax())
        return {
            "tokens": [*map(name, ids), name(last)],
            "token_logprobs": [*values, float(scores[-1][last])],
            "top_logprobs": [*tops, {name(last): float(scores[-1][last])}],
            "text_offset": [0] * (len(ids) + 1),
        }


class Canned(_Running):
    """Sends `answer` (bytes of a whole HTTP reply, or a function that writes them) to every request but GET /models."""

    def __init__(self, answer: bytes | Callable[[Any], None], *, everywhere: bool = False) -> None:
        self.answer, self.everywhere = answer, everywhere

    def get(self, http: _Handler) -> None:
        if self.everywhere:
            self._send(http)
        else:
            http.reply({"data": [{"id": NAME}]})

    def post(self, http: _Handler, body: dict[str, Any]) -> None:
        self._send(http)

    def _send(self, http: _Handler) -> None:
        http.close_connection = True
        with contextlib.suppress(OSError):  # the client may have had enough
            if callable(self.answer):
                self.answer(http.wfile)
            else:
                http.wfile.write(self.answer)


def whole(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
