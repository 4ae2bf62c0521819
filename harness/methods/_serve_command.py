"""The command of a suite that starts a server: checked, and filled in. No shell ever reads it.

It is split as a shell would split it (shlex), and placeholders are filled into the words afterwards, so that no value can add a
word. What only a shell understands is refused, so that nothing is taken otherwise than it was meant.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from harness.errors import BadInput

PLACEHOLDERS = {
    "port": "the port of `url`",
    "host": "the host of `url`",
    "model": "the folder or file of the model that is served (`of`)",
    "artifact": "the file or folder that the cell named with `artifact` has written",
    "name": "the server's name for the model (`model`)",
    "threads": "the CPU threads of this run",
}

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]+)\}")
_SHELL_WORDS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>&1", "&>"}
_ELSEWHERE = {"docker", "podman", "nerdctl", "systemd-run", "ssh", "sudo", "doas", "su"}
"""What these start is no process of ours, or one that we may not end: it would outlive the run, and its memory is not seen."""

_SECRET = re.compile(r"--?(api[-_]?key|(hf|auth|access)?[-_]?token|password|secret)(=.*)?", re.IGNORECASE)


def words_of(command: str) -> list[str]:
    """The command's words, placeholders unfilled. BadInput for what cannot be split."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise BadInput(f"it cannot be split into words ({error}); close the quotes") from None


def wrong(command: str, *, artifact: str, token_env: str) -> str | None:
    """Why a command cannot be what starts a server, or None. A secret in it is never repeated."""
    try:
        words = words_of(command)
    except BadInput as error:
        return str(error)
    if not words or not all(letter.isprintable() or letter in "\n\t" for letter in command):
        return "write the command that starts the server: serve: 'llama-server -m {artifact} --port {port}'"
    return _no_program(words) or _secret(command, words, token_env) or _unfilled(command, words, artifact)


def _no_program(words: Sequence[str]) -> str | None:
    """Why the words are for a shell, or start what cannot be kept."""
    if "=" in words[0] or "{" in words[0]:
        return "it begins with the program; set a variable with: env NAME=VALUE PROGRAM ..."
    program = Path(next((w for w in words if w != "env" and "=" not in w), "")).name
    if program in _ELSEWHERE:
        return f"what {program} starts could not be ended with the run; start that server yourself, and take `serve` out"
    shell = next((w for w in words if w in _SHELL_WORDS or re.search(r"\$[A-Za-z_({]|`", w) or w.startswith("~")), None)
    if shell is None:
        return None
    return f"no shell reads it, and {shell!r} means something to a shell only; write out what it stands for, or a script"


def _secret(command: str, words: Sequence[str], token_env: str) -> str | None:
    token = os.environ.get(token_env, "").strip() if token_env else ""
    if not any(_SECRET.fullmatch(word) for word in words) and not (token and token in command):
        return None
    return (
        "leave secrets out of it, results keep the command; servers take their key from a variable (LLAMA_API_KEY, "
        "VLLM_API_KEY), which they get from here: token_env: NAME"
    )


def _unfilled(command: str, words: Sequence[str], artifact: str) -> str | None:
    """Why the placeholders are not those that can be filled."""
    unknown = sorted({name for word in words for name in _PLACEHOLDER.findall(word)} - set(PLACEHOLDERS))
    if unknown:
        return f"{{{unknown[0]}}} stands for nothing; it takes {', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}"
    if "{artifact}" in command and not artifact:
        return "{artifact} is what another cell has written; name it by its label: artifact: 'gguf 4-bit Q4_K_M'"
    if artifact and "{artifact}" not in command:
        return "`artifact` names a cell, and the command does not serve it; put {artifact} where its file or folder belongs"
    return None


def not_here(url: str) -> str | None:
    """Why a server that is started here cannot be asked at an address, or None."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost", "::1") or not parts.port:
        return "a server that `serve` starts is on this machine; write its port into the address: url: http://127.0.0.1:8123/v1"
    return None


def filled(command: str, values: Mapping[str, str]) -> list[str]:
    """The arguments. BadInput for a value that would be read as an option of its own, and for one with control characters."""

    def value(found: re.Match[str]) -> str:
        known = values[found[1]]
        if not known.isprintable():
            raise BadInput(f"serve: the value of {{{found[1]}}} holds control characters; rename what it names")
        if found.start() == 0 and known.startswith("-"):
            raise BadInput(f"serve: the value of {{{found[1]}}} begins with '-' and would be an option; rename what it names")
        return known

    return [_PLACEHOLDER.sub(value, word) for word in words_of(command)]
