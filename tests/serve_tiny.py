"""The tests' own server as a program: `python -m tests.serve_tiny FOLDER PORT` serves the model of a folder until it is ended.

With `dies`, a third word, it dies of the fourth streamed answer, as servers do that run out of memory under load.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import torch
import transformers

from tests.openai_server import Served


class Mortal(Served):
    """Dies of a load."""

    streams = 0

    def _complete(self, http: Any, body: dict[str, Any]) -> None:
        self.streams += bool(body.get("stream"))
        if self.streams > 3:
            print("no memory is left for another answer", flush=True)
            os._exit(9)
        super()._complete(http, body)


def main() -> None:
    folder, port, *words = sys.argv[1:]
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    server = (Mortal if "dies" in words else Served)(model, tokenizer)
    server.wanted_port = int(port)
    with server:
        print(f"serving on {port}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
