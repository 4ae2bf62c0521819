"""Widths by layer for AutoRound: those of its own AutoScheme, or those of this project's table of losses.

AutoScheme (Intel, 2025) estimates from gradients what each layer loses in each width and chooses within an average of bits. It
takes a text as a file and no rows, so the calibration rows are decoded into one and tokenized once more by the library; a tenth
of each row is left out, because that may give fewer tokens. It counts scales and zero points, and not the indices of the GPTQ
format: their share is taken off the target before. What it delivers is read from the file, and may miss the target.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from harness.formats import gptq_file
from harness.methods import _autoround_recipe, _gptqmodel, _mixture
from harness.methods.base import BY_SENSITIVITY, Mixing, QuantizeRequest
from harness.mixing import Candidate, Mixture, parameters
from harness.models.find import shape_of

BY_AUTOSCHEME = "autoscheme"

MIXING = Mixing(
    widths=_mixture.GPTQ.widths, known=_mixture.GPTQ.known, bits=_mixture.GPTQ.bits, ways=(BY_AUTOSCHEME, BY_SENSITIVITY)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What AutoRound is told: arguments in the place of one width for all layers, the text (rows, or a file's path), and the
    tokens of a row. `mixture`: what was chosen before; None where the library chooses."""

    arguments: Mapping[str, object]
    dataset: object
    length: int
    mixture: Mixture | None


def by_autoscheme(request: QuantizeRequest) -> bool:
    return request.scheme.mixture is not None and request.scheme.mixture["from"] == BY_AUTOSCHEME


@contextlib.contextmanager
def told(request: QuantizeRequest) -> Iterator[Told]:
    """Inside, what the library is told, and nothing of it outlives this."""
    import torch

    rows = request.calibration or ()
    given, length = [torch.tensor([list(row)]) for row in rows], min(map(len, rows))
    own = _autoround_recipe.arguments(request)
    if own is not None:
        yield Told(arguments=own, dataset=given, length=length, mixture=None)
        return
    if not by_autoscheme(request):
        mixture = _gptqmodel.mixture_of(request)
        arguments: dict[str, object] = {"scheme": "W4A16", "bits": _mixture.main(request, mixture), **_shared(request)}
        if mixture is not None:
            arguments["layer_config"] = {n: {"bits": int(b), **_shared(request)} for n, b in mixture.chosen.items()}
        yield Told(arguments=arguments, dataset=given, length=length, mixture=mixture)
        return
    with tempfile.TemporaryDirectory(prefix="autoscheme-") as place:
        folder, shorter = Path(place), max(8, length * 9 // 10)
        (folder / "rows.json").write_text(json.dumps(_texts(request, rows)), encoding="utf-8")
        # Its cache would outlive the run, and its own process for the text would be forked beside threads.
        own = {"AR_AUTO_SCHEME_CACHE": str(folder / "cache"), "AR_DISABLE_DATASET_SUBPROCESS": "1"}
        with mock.patch.dict(os.environ, own):
            yield Told(
                arguments={"scheme": _scheme(request, shorter)},
                dataset=str(folder / "rows.json"),
                length=shorter,
                mixture=None,
            )


def _shared(request: QuantizeRequest) -> dict[str, object]:
    return {"group_size": int(request.scheme.options["group_size"]), "sym": True}


def _texts(request: QuantizeRequest, rows: Sequence[Sequence[int]]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(request.model_dir), trust_remote_code=False)
    return [str(tokenizer.decode(list(row), skip_special_tokens=True)) for row in rows]


def _scheme(request: QuantizeRequest, length: int) -> object:
    from auto_round import AutoScheme
    from auto_round.schemes import QuantizationScheme

    group = int(request.scheme.options["group_size"])
    layers = _layers(request)
    narrow = min(map(int, _mixture.widths(request.scheme)))
    plain = sum(_without_indices(each, narrow, group) for each in layers)
    indices = sum(each.bits[str(narrow)] for each in layers) - plain
    offered = [
        QuantizationScheme.from_dict({"bits": int(width), "group_size": group, "sym": True, "data_type": "int", "act_bits": 16})
        for width in _mixture.widths(request.scheme)
    ]
    return AutoScheme(
        avg_bits=request.scheme.bits - indices / parameters(layers),
        options=offered,
        nsamples=len(request.calibration or ()),
        seqlen=length,
        batch_size=1,
        device_map=request.device,
        enable_torch_compile=False,
    )


def _without_indices(layer: Candidate, width: int, group: int) -> int:
    """Bits of the codes, scales and zero points of a layer."""
    return layer.parameters * width + layer.parameters // group * (16 + width)


def _layers(request: QuantizeRequest) -> tuple[Candidate, ...]:
    """The layers that are quantized, with what each takes in each width, and no losses."""
    taken = _gptqmodel.taken_of(shape_of(request.model_dir))
    return _mixture.candidates(request, taken, int(request.scheme.options["group_size"]))


def delivered(request: QuantizeRequest) -> Mixture:
    """The mixture that the library has written, read from its file."""
    read = gptq_file.Reader(request.out_dir)
    layers = _layers(request)
    return Mixture(
        target=float(request.scheme.bits),
        rounding="chosen by AutoRound's AutoScheme, which leaves no table",
        tokens=0,
        seconds=0.0,
        layers=layers,
        chosen={each.layer: str(read.bits(each.layer)) for each in layers},
    )
