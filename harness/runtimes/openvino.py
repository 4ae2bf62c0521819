"""The OpenVINO CPU runtime over one stateful IR: token ids in, float32 logits of the positions that are wanted out.

`quiet` has to run before anything of OpenVINO or NNCF is imported; importing this module does it. A program holds one state
(keys and values); `keep` and `restore` copy it, and rows of a call may all go on from one kept row. Of some types the state must
not be copied: reading one of 4 bits gives garbage, setting it corrupts memory, and TurboQuant refuses both. There the tokens are
kept, and run again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness import kv as kv_types
from harness.artifact import LayerKernel
from harness.errors import BadInput, NoEffect
from harness.formats.openvino_ir import XML, linear

if TYPE_CHECKING:
    import torch


def quiet() -> None:
    """Takes away the package that OpenVINO and NNCF report home with (usage, to Google Analytics): a measurement tells nobody.
    Both go on without it."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None = cannot be imported


quiet()
import openvino as ov  # noqa: E402 - after `quiet`
from openvino import opset13 as ops  # noqa: E402 - after `quiet`

FACTS = "openvino.json"
State: TypeAlias = tuple[int, list[tuple[str, ov.Tensor]], NDArray[np.int64] | None]
"""Tokens in the state, and a copy of each of its variables by name; or the ids that it was made of, to be run again."""

BATCH = 512
"""Tokens of one call where a window is scored: fixed, so that the same windows give the same bits."""

LOGIT_BYTES = 128 << 20
"""Logits of one call at most: a wide vocabulary is scored in shorter calls."""

PACKED = ("i8", "u8", "i4", "u4")
"""Types in which a product takes quantized weights; any other means that the runtime holds them dequantized."""

_PROPERTIES = (
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "EXECUTION_MODE_HINT",
    "INFERENCE_NUM_THREADS",
)
_CACHE_BYTES = {"u8": (1, 8), "i8": (1, 8), "f16": (2, 0), "bf16": (2, 0), "f32": (4, 0)}
"""Bytes of one value, and of what belongs to each head of each token: an 8-bit cache has a float32 scale and zero point."""


PLAIN = "f16"
"""What keys and values are kept in where a quantized type is compared with none."""


class Program:
    """A compiled IR and its state. `execution`: performance (the runtime's own choice) or accuracy (float32 throughout). `kv`:
    what keys and values are kept in, '' for the runtime's own choice."""

    def __init__(self, folder: Path, *, execution: str = "performance", kv: str = "") -> None:
        import torch

        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.context_length = int(facts["context_length"])
        self.vocab_size = int(facts["vocab_size"])
        self.layers: list[str] = facts["layers"]
        self._packed = facts["type"] != "f16"
        self.execution = execution
        self.kv = kv
        self._folder = folder
        self._plain: Program | None = None
        core = ov.Core()
        try:
            model = core.read_model(str(folder / XML))
        except RuntimeError as error:
            raise BadInput(f"{folder / XML}: OpenVINO cannot read it: {str(error).strip()[-300:]}") from None
        _choose_positions(model)
        self._heads = _heads(model)
        settings: dict[str, object] = {
            "EXECUTION_MODE_HINT": execution.upper(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            **_cache_settings(kv),
        }
        self._compiled = core.compile_model(model, "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self.settings: dict[str, str | int | float] = {
            name.lower(): _said(self._compiled.get_property(name)) for name in _PROPERTIES
        }
        if kv:
            self._take_back_types()
        self.version = str(ov.get_version())
        self.calls = 0
        self.tokens = 0
        self.past = 0
        self._ids: list[NDArray[np.int64]] = []  # what the state was made of, where it has to be run again
        self._rows = 1
        self.uses = 0  # how often the state was begun anew: who remembers the number knows whether the state is still theirs

    # ------------------------------------------------------------------ running

    def clear(self) -> None:
        self._request.reset_state()
        self.past = 0
        self._ids = []
        self.uses += 1

    def renew(self) -> None:
        """An empty state of its own, the memory of the one before given back; `clear` keeps it for what comes next."""
        self._request = self._compiled.create_infer_request()
        self.clear()

    def forget_ids(self) -> None:
        """Drops what it would take to make the state again: whoever weighs the state does not keep it."""
        self._ids.clear()

    @property
    def replays(self) -> bool:
        """Whether the state must neither be read nor set."""
        return any(kind.bits < 8 for kind in kv_types.types("openvino", self.kv)) if self.kv else False

    def plain(self) -> Program:
        """The same IR with unquantized keys and values, compiled at the first use."""
        if not kv_types.quantized(self.kv):
            return self
        if self._plain is None:
            self._plain = Program(self._folder, execution=self.execution, kv=PLAIN)
        return self._plain

    def _take_back_types(self) -> None:
        """Asks the compiled model for its types of keys and values: NoEffect where they are others than were asked for. What
        KV_CACHE_PRECISION says is then no answer: it reads u8 whatever is set."""
        wanted = [kind.native.split()[0] for kind in kv_types.types("openvino", self.kv)]
        kept = [_said(self._compiled.get_property(f"{half}_CACHE_PRECISION")) for half in ("KEY", "VALUE")]
        if kept != wanted:
            asked, got = " and ".join(wanted), " and ".join(map(str, kept))
            raise NoEffect(f"setting had no effect: keys and values in {asked} were asked for, and OpenVINO keeps them in {got}")
        self.settings |= {
            "kv_cache_precision": kv_types.joined(*(kind.native for kind in kv_types.types("openvino", self.kv))),
            "key_cache_group_size": _said(self._compiled.get_property("KEY_CACHE_GROUP_SIZE")),
            "value_cache_group_size": _said(self._compiled.get_property("VALUE_CACHE_GROUP_SIZE")),
        }

    def run(
        self, ids: NDArray[np.signedinteger], wanted: NDArray[np.signedinteger], *, rows: NDArray[np.signedinteger] | None = None
    ) -> NDArray[np.float32]:
        """Appends ids [B, T] to the state and returns the logits [wanted, vocabulary] after the flat places `wanted` (row * T +
        token): a view that the next call overwrites. `rows` [B]: the row of the state that each row goes on from."""
        batch, length = ids.shape
        total = self.past + length
        given = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "attention_mask": np.ones((batch, total), np.int64),
            "position_ids": np.tile(np.arange(self.past, total, dtype=np.int64), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32) if rows is None else np.ascontiguousarray(rows, np.int32),
            # The runtime wants one place at least.
            "places": np.ascontiguousarray(wanted if len(wanted) else [0], np.int64),
        }
        logits = self._request.infer(given, share_inputs=True, share_outputs=True)[0]
        self.past = total
        self._rows = batch
        if self.replays:
            self._ids.append(np.array(ids, np.int64))
        self.calls += 1
        self.tokens += batch * length
        return np.asarray(logits).reshape(-1, logits.shape[-1])[: len(wanted)]

    def each_logits(self, tokens: Sequence[int], *, step: int = BATCH) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Logits after every token of a row that begins anew, as (first position, view [n, vocabulary]) parts."""
        step = min(step, self.most_logits)
        ids = np.asarray(tokens, np.int64)[None]
        self.clear()
        for start in range(0, ids.shape[1], step):
            part = ids[:, start : start + step]
            yield start, self.run(part, np.arange(part.shape[1]))

    def cached_logits(self, window: Sequence[int], split: kv_types.CachedSplit) -> Iterator[NDArray[np.float32]]:
        """Logits after every token of a window but the warm-up and the last one, call by call: views [n, vocabulary]."""
        ids = np.asarray(window[:-1], np.int64)[None]
        self.clear()
        for start, end in split.calls(ids.shape[1]):
            logits = self.run(ids[:, start:end], np.arange(end - start if start else 0))
            if start:
                yield logits

    @property
    def most_logits(self) -> int:
        return max(16, LOGIT_BYTES // (4 * self.vocab_size))

    def keep(self) -> State:
        """A copy of the state, or what it takes to make it again."""
        if self.replays:
            return self.past, [], np.concatenate(self._ids, axis=1)
        return self.past, [(state.name, ov.Tensor(np.array(state.state.data))) for state in self._request.query_state()], None

    def restore(self, kept: State) -> None:
        self.clear()
        if kept[2] is not None:
            self.run(kept[2], np.empty(0, np.int64))
            return
        held = dict(kept[1])
        for state in self._request.query_state():
            state.state = held[state.name]
        self.past = kept[0]

    def log_probabilities(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Float32 log-probabilities [positions, vocabulary] (torch) after each token but the last of each row: what the reload
        check compares."""
        import torch

        parts = []
        for row in rows:
            parts += [torch.log_softmax(torch.from_numpy(part.copy()), dim=-1) for _, part in self.each_logits(row[:-1])]
        return torch.cat(parts)

    # ------------------------------------------------------------------ facts

    def kernels(self) -> list[LayerKernel]:
        """What the compiled graph says of every decoder linear: its primitive, and the type in which it takes the weights."""
        if not self.calls:  # the runtime chooses its primitives when it first sees a shape: one token
            self.run(np.zeros((1, 1), np.int64), np.zeros(1, np.int64))
            self.clear()
            self.calls = self.tokens = 0
        known = set(self.layers)
        kernels: list[LayerKernel] = []
        for node in self._runtime_nodes("FullyConnected"):
            info = node.get_rt_info()
            name = next((n for n in map(linear, _text(info, "originalLayersNames").split(",")) if n in known), None)
            if name is None:
                continue
            stored = node.input_value(1).get_node().get_rt_info()
            kind = _text(stored, "runtimePrecision") if "runtimePrecision" in stored else ""
            if kind in ("", "dynamic", "undefined"):
                kind = _text(info, "runtimePrecision")
            kernels.append(
                LayerKernel(
                    layer=name,
                    module="FullyConnected",
                    op=_text(info, "primitiveType"),
                    stored_dtype=kind,
                    dequantized=self._packed and kind not in PACKED,
                )
            )
        return kernels

    def _runtime_nodes(self, kind: str) -> list[ov.Node]:
        nodes = self._compiled.get_runtime_model().get_ops()
        return [n for n in nodes if "layerType" in n.get_rt_info() and _text(n.get_rt_info(), "layerType") == kind]

    def kv_bytes(self) -> int:
        """Bytes of the state as the runtime keeps it: values in the type that it names, from the state's shapes. Of a type that
        was asked for, from the shapes in the IR: the state itself must not be read."""
        if self.kv:
            halves = dict(zip(("key", "value"), kv_types.types("openvino", self.kv), strict=True))
            each_token = sum(halves[half].bytes_of(heads, size) for half, heads, size in self._heads)
            return round(self._rows * self.past * each_token)
        each, by_head = _CACHE_BYTES[str(self.settings["kv_cache_precision"])]
        shapes = [tuple(state.state.shape) for state in self._request.query_state()]
        return sum(b * h * t * (d * each + by_head) for b, h, t, d in shapes)


def _choose_positions(model: ov.Model) -> None:
    """Gives the graph an input `places`: rows of the flattened hidden states that go into the output head. As OpenVINO GenAI
    does when it cuts the head's input to the last token; which positions are wanted is said with each call here."""
    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":  # a head may scale or cap its logits
        node = node.input_value(0).get_node()
    hidden = node.input_value(0)
    places = ops.parameter([-1], np.int64, name="places")
    places.output(0).get_tensor().set_names({"places"})
    width = hidden.get_partial_shape()[2].get_length()
    flat = ops.reshape(hidden, ops.constant([-1, width], dtype=np.int64), special_zero=False)
    node.input(0).replace_source_output(ops.gather(flat, places, ops.constant(0, dtype=np.int64)).output(0))
    model.add_parameters([places])
    model.validate_nodes_and_infer_types()


def _heads(model: ov.Model) -> list[tuple[str, int, int]]:
    """`key` or `value`, heads and numbers of a head of each variable of the state, of shape [rows, heads, tokens, numbers]."""
    held = []
    for variable in model.get_variables():
        shape = variable.info.data_shape
        half = "value" if variable.info.variable_id.endswith("value") else "key"
        held.append((half, int(shape[1].get_length()), int(shape[3].get_length())))
    return held


def _cache_settings(kv: str) -> dict[str, object]:
    """OpenVINO's properties for a type of keys and values; none where nothing is said."""
    settings: dict[str, object] = {}
    for half, kind in zip(("KEY", "VALUE"), kv_types.types("openvino", kv) if kv else (), strict=False):
        precision, _, algorithm = kind.native.partition(" ")
        settings[f"{half}_CACHE_PRECISION"] = getattr(ov.Type, precision)
        if algorithm:
            settings[f"{half}_CACHE_QUANT_ALG"] = algorithm
    return settings


def _text(info: ov.RTMap, name: str) -> str:
    return str(info[name].astype(str)) if name in info else ""


def _said(value: object) -> str | int | float:
    """A property as plain data: `<Type: 'uint8_t'>` and its like by OpenVINO's short name."""
    if isinstance(value, ov.Type):
        return str(value.get_type_name())
    return value if isinstance(value, (int, float, str, bool)) else str(value).rpartition(".")[2].lower()
