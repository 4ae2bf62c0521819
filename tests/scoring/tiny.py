"""Tiny random models of many architectures, a tokenizer trained on the spot, and requests with shared prefixes."""

from __future__ import annotations

import random
from typing import Any

import tokenizers
import torch
import transformers

VOCAB = 480
TEXT = (
    "the a of to in river stone green runs quickly seven eleven house opens question answer which city has more water than sand "
    "because nobody counted birds before noon and after that all lamps were lit again by her brother"
)
WORDS = TEXT.split()

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": COMMON,
    "Qwen2": COMMON,
    "Qwen3": {**COMMON, "head_dim": 16},
    "Gemma": {**COMMON, "head_dim": 16},
    "Gemma2": {**COMMON, "head_dim": 16, "sliding_window": 512, "final_logit_softcapping": 5.0},
    "Phi": COMMON,
    "GPTNeoX": {**COMMON, "rotary_pct": 0.5},
    "OPT": {**COMMON, "ffn_dim": 96, "word_embed_proj_dim": 32},
    "Granite": {**COMMON, "logits_scaling": 3.0},
    "Cohere": {**COMMON, "logit_scale": 0.25},
    "Mistral": {**COMMON, "sliding_window": 24},
    "Bloom": {"vocab_size": VOCAB, "hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "Mamba": {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.2},
}

SHARING = ("Llama", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Phi", "GPTNeoX", "OPT", "Granite", "Cohere")


def model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random causal LM in float32."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**ARCHITECTURES[name], **changes})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def tokenizer() -> Any:
    """Byte-level BPE trained on sentences of WORDS; BOS is put in front of every text, as Llama's does."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([sentence(random.Random(number), 12) for number in range(200)], trainer)
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choice(WORDS) for _ in range(words))


def questions(seed: int = 0, *, subjects: int = 2, each: int = 5, choices: int = 3, shots: int = 3) -> list[tuple[str, str]]:
    """(context, continuation) pairs: a long header per subject, questions below it, choices of different length below those."""
    source = random.Random(seed)
    pairs = []
    for _ in range(subjects):
        header = "\n\n".join(f"Question: {sentence(source, 7)}\nAnswer: {sentence(source, 2)}" for _ in range(shots))
        for _ in range(each):
            context = f"{header}\n\nQuestion: {sentence(source, source.randrange(3, 9))}\nAnswer:"
            pairs += [(context, " " + sentence(source, source.randrange(1, 5))) for _ in range(choices)]
    return pairs


def corner_cases() -> list[tuple[str, str]]:
    """Everything that tokenization and planning trip over."""
    return [
        ("", "the river runs"),  # empty context: the prefix token stands for it
        ("", "<s>the river"),  # the continuation begins with the prefix token
        ("<s>the stone", " opens"),  # the context brings its own BOS
        ("the house ", "opens again"),  # a trailing space moves to the continuation
        ("the house \n", "opens again"),
        ("which city has", " more water"),
        ("which city has", " more water"),  # a duplicate
        ("which city has", " more"),  # a prefix of another request
        ("which city", " has more water"),  # the same text, cut elsewhere
        ("a", "b"),
    ]


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """lm-eval's Instance objects."""
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=args, idx=number) for number, args in enumerate(arguments)]
