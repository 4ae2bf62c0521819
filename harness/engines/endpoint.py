"""The engine for a running server that speaks the OpenAI API: asked over HTTP, on the source model's own tokens.

What a server can answer is found out by asking (canaries) before anything is measured, and what it cannot is typed
`unsupported` with the reason:

- **prompts** go as token ids where the server takes them and counts as many; else as text, whose tokens are counted and
  compared by the server's own count;
- **log-likelihoods** (`echo`, `logprobs` of /completions) are used only where log-probabilities of the prompt come back, for
  these very tokens (by id where the server gives ids, else piece by piece); where a token's does not change with what comes
  after it; and where the distribution at a place does not change with the token that stands there. A server exists that fails
  the last of these (llama-cpp-python 0.3.36 for models without BOS is one token late) and looks right otherwise;
- **divergence** needs the whole distribution at each position. Servers give the few largest; what is left out is not guessed.

A server's sampling defaults are overridden (temperature 0, no penalties) as far as it takes the fields; what it does in spite of
them cannot be seen from here. See docs/endpoint.md.
"""

from __future__ import annotations

from pathlib import Path

from harness.runtimes.openai_server import Endpoint
from harness.spec import Cell


def load(cell: Cell, artifact_dir: Path, model_dir: Path, device: str) -> Endpoint:
    """Asks the server who it is; the tokenizer is the source model's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False)
    return Endpoint(cell.scheme, tokenizer, model_dir=model_dir)
