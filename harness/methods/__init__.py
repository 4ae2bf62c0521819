"""The methods: one row each. A new method is one file and one line here."""

from __future__ import annotations

import os

from harness.methods import awq, bnb, fake, gguf, gptq, hqq, native, rtn
from harness.methods.base import Method

METHODS: dict[str, Method] = {
    "fp32": native.FP32,
    "bf16": native.BF16,
    "fp16": native.FP16,
    "rtn": rtn.METHOD,
    "gptq": gptq.METHOD,
    "awq": awq.METHOD,
    "hqq": hqq.METHOD,
    "bnb": bnb.METHOD,
    "gguf": gguf.METHOD,
}

if os.environ.get("QUANT_HARNESS_FAKES"):  # scripted method of the tests; see fake.py
    METHODS[fake.METHOD.name] = fake.METHOD
