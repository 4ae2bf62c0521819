"""endpoint: a model that is served over the OpenAI API, measured as it is: vLLM, SGLang, llama-server, Ollama, ...

Nothing is quantized and nothing is known of the weights but what the server says. A suite names the server and which of its
models the cell runs; the bits are what its operator says they are, 0 where nobody said. The artifact is a note of what was
asked and of what the server said about itself. Somebody else runs the server, or the suite gives the command that starts it
(`serve`, see run/own_servers.py). A token comes from an environment variable that the suite names; it is read
where a request is sent and is written nowhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from harness.artifact import LayerKernel, ModelShape, StoredTensor
from harness.errors import BadInput, Unsupported
from harness.methods import _serve_command, reload
from harness.methods.base import LoadRequest, Method, Option, QuantizeRequest, Range
from harness.spec import OptionValue, Scheme, Served

NAME = "endpoint"
FACTS = "endpoint.json"


def check_url(url: OptionValue) -> str | None:
    """Why this is no address of a server, or None."""
    if not isinstance(url, str) or not url:
        return "name the server: url: http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"{error}; write it as http://127.0.0.1:8000/v1"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "an address begins with http:// or https:// and names a host, as http://127.0.0.1:8000/v1 does"
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        return (
            "leave credentials and everything after ? or # out of it, results keep the address; a token comes from an "
            "environment variable: token_env: NAME"
        )
    if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", parts.netloc) or not re.fullmatch(r"[A-Za-z0-9._~/-]*", parts.path):
        return "it holds characters that an address does not have"
    return None


def _check_model(name: OptionValue) -> str | None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        return "name the model as the server lists it: model: NAME"
    return None


def _check_variable(name: OptionValue) -> str | None:
    """A token that is written into the suite by mistake must not be repeated in the message."""
    if not isinstance(name, str) or (name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name)):
        return "it is the name of an environment variable, not the token itself"
    return None


def _check_label(name: OptionValue) -> str | None:
    if not isinstance(name, str) or len(name) > 60 or not name.isprintable():
        return "a name is at most 60 characters that can be printed"
    return None


def origin(options: Mapping[str, OptionValue], bits: float) -> Served:
    """The server that a suite's options name. `of` and `name` say which cell it is, and are no part of it. BadInput for options
    that do not go together."""
    url, serve, artifact, token_env = (str(options[name]) for name in ("url", "serve", "artifact", "token_env"))
    if serve:
        why = _serve_command.not_here(url) or _serve_command.wrong(serve, artifact=artifact, token_env=token_env)
        if why is not None:
            raise BadInput(f"serve: {why}")
    elif artifact:
        raise BadInput("artifact: names what a server that is started here serves; give its command too: serve: ...")
    return Served(
        scheme=Scheme(method=NAME, bits=bits),
        url=url,
        model=str(options["model"]),
        token_env=token_env,
        serve=serve,
        artifact=artifact,
        wait_seconds=float(str(options["wait"])),
    )


def label(origin: Served) -> str:
    """What people call the cell if the suite does not say: the server's model and where it is."""
    said = f" {origin.scheme.bits:g}-bit" if origin.scheme.bits else ""
    return f"{origin.model}{said} at {urlsplit(origin.url).netloc}"


def quantize(request: QuantizeRequest) -> None:
    """Asks the server for its models and notes what it says; ServerTrouble where it does not answer or has no such model."""
    from harness.runtimes import openai_server

    if not isinstance(request.origin, Served):
        raise TypeError("a server's note is made of a server")
    said = openai_server.introduce(request.origin)
    (request.out_dir / FACTS).write_text(json.dumps(said, indent=1), encoding="utf-8")
    reload.skip(request.out_dir, "a server: its weights are nowhere here, so there is nothing to compare its answers with")


def load(request: LoadRequest) -> NoReturn:
    raise Unsupported("a server is asked over HTTP and not loaded")


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    raise Unsupported(
        "a server does not say what it stores, so its size is not known; measure its checkpoint as a model of the suite"
    )


def _kernels(model: object) -> list[LayerKernel]:
    return []


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    return None


METHOD = Method(
    name=NAME,
    title="Running server",
    origin="served",
    options={
        "serve": Option(default="", help="the command that starts the server: 'llama-server -m {artifact} --port {port}'"),
        "artifact": Option(default="", help="the cell of the suite whose artifact it serves, by its label: gguf 4-bit Q4_K_M"),
        "wait": Option(default=600.0, within=Range(above=0.0), help="seconds that its start may take"),
        "url": Option(default="", check=check_url, help="where its API is, up to /v1: http://127.0.0.1:8000/v1"),
        "model": Option(default="", check=_check_model, help="which of the server's models, as GET /models lists it"),
        "of": Option(default="", help="the model of the suite that it serves; needed where the suite has several"),
        "name": Option(default="", check=_check_label, help="what to call the cell in reports"),
        "token_env": Option(default="", check=_check_variable, help="environment variable that holds the token, if it wants one"),
    },
    engine="endpoint",
    quantize=quantize,
    load=load,
    supports=_supports,
    ledger=_ledger,
    weights=None,
    kernels=_kernels,
    summary="any OpenAI-compatible server: vLLM, SGLang, llama-server, Ollama, trtllm-serve, OpenVINO Model Server",
)
