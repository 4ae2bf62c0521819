"""The reference model's tokenizer: byte-level BPE with GPT-2's pre-tokenizer, trained on the corpus.

What it promises: any text survives encode and decode, and every digit is a token of its own, because the merges
are learned from text without digits. GPT-2's pre-tokenizer is what every converter (GGUF, OpenVINO, ...) knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.reference.corpus import Mixer
from harness.reference.world import World

END = "<|endoftext|>"
VOCABULARY = 3072  # a multiple of 256; rare names fall into two or three pieces
TRAINING_DOCUMENTS = 40_000


def train_tokenizer(world: World, *, vocabulary: int = VOCABULARY, documents: int = TRAINING_DOCUMENTS) -> Tokenizer:
    """Learn the merges from the first `documents` training documents, digits taken out."""

    def texts() -> Iterator[str]:
        mixer = Mixer(world)
        for _ in range(documents):
            yield re.sub(r"\d+", "", mixer.next())

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer=trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers loads them; no token is added on its own."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(str(folder))
    # transformers 5 writes its own new class name; the old one is understood by 4 and 5 and by every converter.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
