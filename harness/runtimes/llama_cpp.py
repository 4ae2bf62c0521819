"""llama.cpp through llama-cpp-python's low-level API: a GGUF file loaded, contexts in which tokens are decoded, and quantizing.

`Weights` is a loaded file, `Context` a KV cache with the logits of what was decoded last. Token ids in, float32 logits out;
no tokenizer of llama.cpp is ever asked. On the CPU the file is mapped; llama.cpp may keep a repacked copy of some tensors.
llama.cpp's warnings are kept and become the text of the error when a call fails.
"""

from __future__ import annotations

import collections
import ctypes
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness import kv
from harness.errors import BadInput, Unsupported
from harness.formats.gguf_reader import GgufHeader, header, kv_widths, parts
from harness.formats.gguf_types import BLOCKS, TYPES

if TYPE_CHECKING:
    import torch

BATCH = 512
"""Tokens of one call: llama.cpp's own default of a physical batch."""

LOGIT_BYTES = 128 << 20
"""Logits of one call at most: a wide vocabulary is decoded in shorter calls."""

CELLS = 256
"""A KV cache has a multiple of so many cells for each row."""

MOST_SEQUENCES = 256
"""llama.cpp's own limit (LLAMA_MAX_SEQ)."""

KV_TYPES = kv.ENGINES["llamacpp"]
"""Words for what keys and values are kept in; `KEY/VALUE` where the two differ."""

_NUMBERS = {block.name: number for number, block in TYPES.items()}
_said: collections.deque[str] = collections.deque(maxlen=20)
_rotated: dict[str, bool] = {}
"""Whether keys (`k`) and values (`v`) of the last context are rotated before they are quantized, as llama.cpp has said."""


@lib.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes' wrapper has no types
def _listen(level: int, text: bytes, user_data: object) -> None:
    for half, rotated in re.findall(rb"attn_rot_([kv]) = (\d)", text):
        _rotated[half.decode()] = rotated != b"0"
    if level in (3, 4):  # warning, error
        said = " ".join(text.decode("utf-8", errors="replace").split()).strip("= ")
        if said:
            _said.append(said)
            logging.getLogger("llama.cpp").debug(said)


lib.llama_log_set(_listen, ctypes.c_void_p(0))
lib.llama_backend_init()


def _why() -> str:
    said = " · ".join(list(_said)[-4:]) or "it said nothing"
    _said.clear()
    return said[:1000]


def threads() -> int:
    """Threads to compute with: what the harness has told torch, else `OMP_NUM_THREADS`, else the cores of this process."""
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attention(kv_type: str) -> str:
    """How attention can run with a type of cache: `fused` (quantized values need it), `written out` (the fused kernel would
    round float32 to 16 bits), or `either`: then llama.cpp chooses, and takes the fused one where the device has it."""
    if kv.quantized(kv_type):
        return "fused"
    return "written out" if "f32" in kv.halves(kv_type) else "either"


def ggml_types(kv_type: str) -> tuple[str, str]:
    """ggml's names of the types of keys and of values."""
    key, value = kv.types("llamacpp", kv_type)
    return key.native.upper(), value.native.upper()


class Weights:
    """A GGUF file loaded by llama.cpp. `device`: cpu, cuda or cuda:N. `kv_type` is what contexts keep keys and values in."""

    def __init__(self, path: Path, *, device: str = "cpu", kv_type: str = "f16") -> None:
        if not set(kv.halves(kv_type)) <= KV_TYPES.keys():
            raise BadInput(f"unknown type of KV cache {kv_type!r}; known: {', '.join(KV_TYPES)}")
        self.path = path
        self.device = device
        self.kv_type = kv_type
        self.header: GgufHeader = header(path)
        self.threads = threads()
        params = lib.llama_model_default_params()
        if device == "cpu":
            params.n_gpu_layers = 0
        elif not lib.llama_supports_gpu_offload():
            raise Unsupported(
                f"device {device}: this llama-cpp-python was built without CUDA; build it again with: "
                'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-deps --no-binary :all: llama-cpp-python'
            )
        else:
            params.n_gpu_layers = -1
            params.split_mode = lib.LLAMA_SPLIT_MODE_NONE
            params.main_gpu = int(device.partition(":")[2] or 0)
        _said.clear()
        self._model = _loaded(path, params)
        if not self._model:
            raise BadInput(f"{path}: llama.cpp cannot load it: {_why()}")
        vocabulary = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(vocabulary))
        self.context_length = int(lib.llama_model_n_ctx_train(self._model))
        self.weight_bytes = int(lib.llama_model_size(self._model))
        self._kept: tuple[tuple[int | str, ...], Context] | None = None

    @property
    def attention(self) -> str:
        return attention(self.kv_type)

    def context(
        self,
        tokens: int,
        *,
        rows: int = 1,
        shared: bool = False,
        outputs: int | None = None,
        batch: int = BATCH,
        fused: bool = True,
        kv_type: str | None = None,
    ) -> Context:
        """A context for `rows` sequences of `tokens` tokens each, empty. `shared`: all rows in one buffer of `tokens` in which
        they may share what they have in common. `outputs`: logits of one call at most. `fused` attention, or written out,
        where both can be had. `kv_type`: another type of cache than the file's own.

        The last one is kept, and given again (emptied) when the same is asked: one at a time is in memory.
        """
        # llama.cpp wants room for the logits of every row at once.
        most = max(rows, outputs or max(16, min(batch, LOGIT_BYTES // (4 * self.vocab_size))))
        batch = max(rows, batch)
        # As llama.cpp rounds them itself, but it takes its limit of a call from what it was asked for.
        padded = -(-tokens // CELLS) * CELLS
        cells = padded if shared else padded * rows
        kind = kv_type or self.kv_type
        settings = (cells, rows, shared, most, batch, fused, kind)
        if self._kept is not None and self._kept[0] == settings:
            self._kept[1].clear()
            return self._kept[1]
        self.release()
        made = Context(self, cells=cells, rows=rows, shared=shared, outputs=most, batch=batch, fused=fused, kv_type=kind)
        self._kept = (settings, made)
        return made

    def release(self) -> None:
        """Frees the kept context: its KV cache and buffers."""
        if self._kept is not None:
            self._kept[1].free()
            self._kept = None

    def close(self) -> None:
        """Frees everything; the object cannot be used any more."""
        self.release()
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None

    def log_probabilities(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Float32 log-probabilities [positions, vocabulary] (torch) after each token but the last of each row: what the
        reload check compares. The cache is float32: the check is about the weights."""
        import torch

        context = self.context(max(map(len, rows)), kv_type="f32")
        parts = []
        for row in rows:
            context.clear()
            parts += [torch.log_softmax(torch.from_numpy(part), dim=-1) for _, part in context.all_logits(row[:-1])]
        return torch.cat(parts)

    def kv_bytes(self, cells: int) -> int:
        """Bytes of keys and values of `cells` tokens in all layers."""
        blocks = [BLOCKS[name] for name in ggml_types(self.kv_type)]
        return sum(
            cells * (width // block.weights) * block.size
            for layer in kv_widths(self.header)
            for width, block in zip(layer, blocks, strict=True)
        )

    def rotation(self) -> dict[str, bool]:
        """Whether llama.cpp rotates keys and values before it quantizes them, which it decides by itself. A context has to be
        made for it to say so."""
        _rotated.clear()
        self.release()
        self.context(CELLS)
        self.release()
        return dict(_rotated)

    @property
    def pointer(self) -> lib.llama_model_p:
        return self._model


class Context:
    """A KV cache and the logits of the last call. Sequences are numbered from 0; positions of one sequence follow each other."""

    def __init__(
        self, weights: Weights, *, cells: int, rows: int, shared: bool, outputs: int, batch: int, fused: bool, kv_type: str
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = batch
        params.n_ubatch = min(batch, BATCH)
        params.n_seq_max = rows
        params.n_outputs_max = outputs
        params.n_threads = params.n_threads_batch = weights.threads
        params.type_k, params.type_v = (_NUMBERS[name] for name in ggml_types(kv_type))
        params.kv_unified = shared
        can = attention(kv_type)
        if can == "fused":
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        elif fused and can == "either":
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
        else:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.offload_kqv = params.op_offload = weights.device != "cpu"
        params.no_perf = True
        _said.clear()
        self._pointer = lib.llama_init_from_model(weights.pointer, params)
        if not self._pointer:
            why = _why()
            kind = MemoryError if "alloc" in why else RuntimeError
            raise kind(f"llama.cpp cannot make a context of {cells} tokens for {rows} rows: {why}")
        self._memory = lib.llama_get_memory(self._pointer)
        self._vocab_size = weights.vocab_size
        self.cells = int(lib.llama_n_ctx(self._pointer))
        self.batch = batch
        self.outputs = outputs
        self.calls = 0
        self.tokens = 0

    def decode(self, tokens: ArrayLike, positions: ArrayLike, sequences: ArrayLike, wanted: ArrayLike) -> NDArray[np.float32]:
        """Runs at most `batch` tokens (integer arrays [n]; `wanted` boolean) and returns the logits [wanted, vocabulary] of
        the wanted ones: a view that the next call overwrites."""
        ids = np.ascontiguousarray(tokens, np.int32)
        count = len(ids)
        places = np.ascontiguousarray(positions, np.int32)
        rows = np.ascontiguousarray(sequences, np.int32)
        flags = np.ascontiguousarray(wanted, np.int8)
        ones = np.ones(count, np.int32)
        # Every array has to be a local of its own: a ctypes structure keeps no array alive.
        addresses = (rows.ctypes.data + 4 * np.arange(count, dtype=np.uint64)).astype(np.uint64)
        batch = lib.llama_batch(
            n_tokens=count,
            token=ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            embd=None,
            pos=places.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=ones.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=addresses.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        code = lib.llama_decode(self._pointer, batch)
        if code == 1:
            raise RuntimeError(f"llama.cpp found no room for {count} tokens in a context of {self.cells}")
        if code:
            raise RuntimeError(f"llama.cpp failed with {code} on {count} tokens: {_why()}")
        self.calls += 1
        self.tokens += count
        rows_out = int(np.count_nonzero(flags))
        if not rows_out:
            lib.llama_synchronize(self._pointer)
            return np.empty((0, self._vocab_size), np.float32)
        return np.ctypeslib.as_array(lib.llama_get_logits(self._pointer), shape=(rows_out, self._vocab_size))

    def all_logits(self, tokens: Sequence[int]) -> list[tuple[int, NDArray[np.float32]]]:
        """Logits after every token of an empty context's sequence 0, as (first position, copy [n, vocabulary]) parts."""
        return [(start, logits.copy()) for start, logits in self.each_logits(tokens)]

    def each_logits(self, tokens: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """As `all_logits`, part by part, each a view that the next one overwrites."""
        step = min(self.batch, self.outputs)
        for start in range(0, len(tokens), step):
            yield start, self.row(tokens[start : start + step], start)

    def row(self, tokens: Sequence[int], start: int, *, wanted: bool = True) -> NDArray[np.float32]:
        """Logits after every one of these tokens of sequence 0, which stand at places `start` on; none that are not `wanted`."""
        count = len(tokens)
        return self.decode(tokens, np.arange(start, start + count), np.zeros(count), np.full(count, wanted))

    def prefill(self, prompts: NDArray[np.signedinteger]) -> NDArray[np.float32]:
        """Runs prompts [rows, tokens] into an empty context and returns the logits [rows, vocabulary] after the last tokens."""
        rows, length = prompts.shape
        tokens, sequences = prompts.reshape(-1), np.repeat(np.arange(rows), length)
        places = np.tile(np.arange(length), rows)
        last = places == length - 1
        logits = []
        for start in range(0, len(tokens), self.batch):
            part = slice(start, start + self.batch)
            logits.append(self.decode(tokens[part], places[part], sequences[part], last[part]).copy())
        return np.concatenate(logits)

    @property
    def alive(self) -> bool:
        return bool(self._pointer)

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, False)

    def share(self, source: int, target: int) -> None:
        """What sequence `source` holds belongs to `target` too; in a shared buffer nothing is copied."""
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def forget(self, sequence: int, first: int) -> bool:
        """Drops positions `first` and later of a sequence, and says whether that was done: a recurrent state cannot be cut in
        part, only dropped as a whole (`first` 0)."""
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, first, -1))

    def free(self) -> None:
        if self._pointer:
            lib.llama_free(self._pointer)
            self._pointer = None


def system_info() -> str:
    """llama.cpp's own line on what its kernels were built for."""
    said: bytes = lib.llama_print_system_info()
    return said.decode("utf-8", errors="replace").strip()


def _loaded(path: Path, params: lib.llama_model_params) -> int | None:
    """llama.cpp's model of a file, or of all its parts: their names are the cache's, and it would not find them by itself."""
    files = [os.fsencode(part) for part in parts(path)]
    if len(files) == 1:
        single: int | None = lib.llama_model_load_from_file(files[0], params)
        return single
    several: int | None = lib.llama_model_load_from_splits((ctypes.c_char_p * len(files))(*files), len(files), params)
    return several


def same_ids(path: Path, text: str, ids: Sequence[int]) -> bool:
    """Whether llama.cpp reads the vocabulary in a GGUF file and gives `ids` for `text`."""
    params = lib.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    model = _loaded(path, params)
    if not model:
        return False
    try:
        vocabulary = lib.llama_model_get_vocab(model)
        raw = text.encode("utf-8")
        buffer = (ctypes.c_int32 * (len(raw) + 16))()
        count = lib.llama_tokenize(vocabulary, raw, len(raw), buffer, len(buffer), False, True)
        return list(buffer[: max(count, 0)]) == list(ids)
    finally:
        lib.llama_model_free(model)


def quantize(
    source: Path,
    target: Path,
    *,
    file_type: str,
    importance: Mapping[str, NDArray[np.float32]],
    types: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """`llama_model_quantize` of an unquantized GGUF file; `importance` by tensor name, one number per input column. `types`: of
    the tensors whose names match a pattern, in place of those that the file type gives them.

    RuntimeError with llama.cpp's own words where it refuses.
    """
    params = lib.llama_model_quantize_default_params()
    params.nthread = threads()
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    held = {name: np.ascontiguousarray(values, np.float32) for name, values in importance.items()}
    if held:
        entries = (lib.llama_model_imatrix_data * (len(held) + 1))()  # the last one, without a name, ends the list
        for entry, (name, values) in zip(entries, held.items(), strict=False):
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        params.imatrix = entries
    if types:
        listed = (lib.llama_model_tensor_override * (len(types) + 1))()  # the last one, without a pattern, ends the list
        for override, (pattern, kind) in zip(listed, types.items(), strict=False):
            override.pattern, override.type = pattern.encode(), _NUMBERS[kind]
        params.tt_overrides = listed
    _said.clear()
    code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code:
        raise RuntimeError(f"llama.cpp cannot quantize to {file_type}: {_why()}")
