"""The methods: one row each. A new method is one file and one line here."""

from __future__ import annotations

import os

from harness.methods import (
    autoawq,
    autogptq,
    autoround,
    awq,
    bitnet,
    bnb,
    endpoint,
    eora,
    fake,
    finetune,
    gguf,
    gguf_file,
    gptq,
    hqq,
    inc,
    llmcompressor,
    lora,
    modelopt,
    native,
    openvino,
    prequantized,
    quanto,
    rtn,
    torchao,
)
from harness.methods.base import Method

METHODS: dict[str, Method] = {
    "fp32": native.FP32,
    "bf16": native.BF16,
    "fp16": native.FP16,
    "rtn": rtn.METHOD,
    "gptq": gptq.METHOD,
    "awq": awq.METHOD,
    "autoround": autoround.METHOD,
    "hqq": hqq.METHOD,
    "bitnet": bitnet.METHOD,
    "bnb": bnb.METHOD,
    "torchao": torchao.METHOD,
    "quanto": quanto.METHOD,
    "ft": finetune.FT,
    "ft+ptq": finetune.FT_PTQ,
    "qat": finetune.QAT,
    "qlora": lora.QLORA,
    "hqq+lora": lora.HQQ_LORA,
    "gptq+lora": lora.GPTQ_LORA,
    "eora": eora.METHOD,
    "gguf": gguf.METHOD,
    "openvino": openvino.METHOD,
    "inc": inc.METHOD,
    "autogptq": autogptq.METHOD,
    "autoawq": autoawq.METHOD,
    "llmcompressor": llmcompressor.METHOD,
    "modelopt": modelopt.METHOD,
    "prequantized": prequantized.METHOD,
    "gguf_file": gguf_file.METHOD,
    "endpoint": endpoint.METHOD,
}

if os.environ.get("QUANT_HARNESS_FAKES"):  # scripted methods of the tests; see fake.py
    METHODS.update(fake.METHODS)
