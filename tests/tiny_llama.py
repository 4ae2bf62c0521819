"""A tiny random Llama with a byte-level tokenizer trained on the spot, a text, and a session to ask probes in."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from harness.engines import ENGINES
from harness.engines.transformers import Transformers
from harness.errors import Unsupported
from harness.methods import METHODS
from harness.methods.base import LoadRequest, QuantizeRequest
from harness.models import corpora
from harness.spec import Model, Phase, Quantized, Question, Running, Scheme
from tests.squares import square

VOCAB = 512
WORDS = (  # noqa: SIM905
    "the a of to in river stone green runs quickly seven eleven house opens answer which city has more water than sand because "
    "nobody counted birds before noon and after that all lamps were lit again by her brother who crossed the old bridge"
).split()


def text(sentences: int, seed: int = 0) -> str:
    source = random.Random(seed)
    lines = [" ".join(source.choice(WORDS) for _ in range(source.randrange(4, 15))).capitalize() + "." for _ in range(sentences)]
    return " ".join(lines)


def tokenizer(bos: bool = True, special: Sequence[str] = (), **settings: Any) -> Any:
    """`bos`: BOS is put before every text, as Llama's tokenizer does. `special`: further special tokens. `settings` are those of
    a tokenizer of transformers."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<s>", "</s>", *special],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([text(200, seed=99)], trainer)
    if bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    settings = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **settings}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **settings)


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.08,
        "tie_word_embeddings": True,
        **changes,
    }
    torch.manual_seed(seed)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    return model.to(dtype).eval()


def nudged(model: Any, size: float, seed: int = 1) -> Any:
    """A copy of the model with noise of relative `size` on its linear layers: what quantizing does, roughly."""
    import copy

    other = copy.deepcopy(model)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if "proj" in name:
                weight += size * weight.std() * torch.randn(weight.shape, generator=source, dtype=torch.float32).to(weight.dtype)
    return other


def windows(count: int, length: int, seed: int = 0, vocab: int = VOCAB) -> list[list[int]]:
    source = torch.Generator().manual_seed(seed)
    found: list[list[int]] = torch.randint(3, vocab, (count, length), generator=source).tolist()
    return found


class TinySession:
    """`probes.base.Session` over a model that is there already."""

    def __init__(
        self,
        engine: Transformers,
        folder: Path,
        *,
        corpus: str = "",
        baseline: Path | None = None,
        is_baseline: bool = False,
        tasks: Path | None = None,
        items: Any = None,
    ) -> None:
        self.cell = square(Scheme(method="rtn", bits=4), model=Model(name="tiny"))
        self.is_baseline = is_baseline
        self.artifact_dir = folder
        self.model_dir = folder
        self.device = "cpu"
        self.seed = 0
        self.cache = folder / "cache"
        self.memo: dict[str, Any] = {}
        self.loaded = engine
        self.blobs: dict[str, bytes] = {}
        self._corpus, self._baseline, self._tasks, self._items = corpus, baseline, tasks, items

    def load_baseline(self) -> None:
        return None

    def windows(self, question: Question) -> list[list[int]]:
        ids = self.loaded.tokenizer(self._corpus, verbose=False)["input_ids"]
        return corpora.windows(ids, question.options["window"], question.options["tokens"], question.subject)

    def corpus(self, question: Question) -> corpora.Text:
        return corpora.Text(text=self._corpus, documents=1)

    def task_folder(self, question: Question) -> Path | None:
        return self._tasks

    def baseline_items(self, question: Question) -> Any:
        return self._items

    def stored_baseline(self, question: Question) -> Path:
        if self._baseline is None:
            raise Unsupported("no baseline")
        if self.is_baseline and not self._baseline.is_dir():
            self.loaded.store_baseline(self.windows(question), self._baseline)
        return self._baseline

    def blob(self, name: str, data: bytes, extension: str) -> str:
        self.blobs[f"{name}.{extension}"] = data
        return f"{name}.{extension}"

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def phases(self) -> tuple[Phase, ...]:
        return ()


def corpus_question(probe: str, definition: str = "gptq-64", window: int = 64, tokens: int | None = None) -> Question:
    options = {"definition": definition, "window": window, "tokens": tokens, "corpus_digest": "0"}
    return Question(probe=probe, subject="text", options=options)


def quantized(root: Path, origin: Quantized) -> Path:
    """`root` with a Llama in `source` and what the origin's method makes of it in `artifact`."""
    (root / "artifact").mkdir()
    llama(dtype=torch.bfloat16, seed=3).save_pretrained(root / "source")
    tokenizer().save_pretrained(root / "source")
    request = QuantizeRequest(
        model_dir=root / "source", out_dir=root / "artifact", origin=origin, calibration=None, device="cpu", seed=0
    )
    METHODS[origin.scheme.method].quantize(request)
    return root


def loaded(root: Path, origin: Quantized, running: Running) -> Any:
    """The artifact of `quantized`, loaded by the engine that `running` names."""
    request = LoadRequest(artifact_dir=root / "artifact", model_dir=root / "source", origin=origin, running=running, device="cpu")
    return ENGINES[running.engine].load(METHODS[origin.scheme.method], request)
