"""autoround: learns for each weight whether to round up or down, and each group's range, by signed gradient descent on the
block's output (Cheng et al., SignRound, 2023; Intel's AutoRound).

`iters` steps per block: 50 here, because a step on a CPU costs a block's forward and backward; the library's own default is 200.
`iters: 0` learns nothing and rounds to nearest: with scales searched under the inputs' second moments, or, with `opt_rtn:
false`, plainly.

The artifact is in the GPTQ format, which the 4-bit kernels of every runtime take; GPTQModel loads it (see _gptqmodel.py). That
export stores the zero point 0 as 1, which would shift whole groups by a step, so only symmetric steps are offered.
"""

from __future__ import annotations

import json
from dataclasses import replace

from harness import recipes
from harness.artifact import ModelShape
from harness.errors import Unsupported
from harness.files import draft_file
from harness.formats import config_json, gptq_file, quantization_config, safetensors_file
from harness.methods import _autoround_mixture, _autoround_recipe, _gptqmodel, _mixture, _recipe
from harness.methods.base import Option, QuantizeRequest, Range
from harness.mixing import Mixture
from harness.models import build, source
from harness.spec import Scheme

BITS = (8, 4, 3, 2)
_KEPT = ("bits", "group_size", "sym", "desc_act", "true_sequential", "lm_head", "quant_method", "iters", "provider")


def quantize(request: QuantizeRequest) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    options, rows = request.scheme.options, request.calibration or ()
    unlearned = {} if int(options["iters"]) else {"disable_opt_rtn": not options["opt_rtn"]}
    with _autoround_mixture.told(request) as told:
        AutoRound(
            build.plain(request.model_dir, torch.bfloat16, request.device),
            tokenizer=AutoTokenizer.from_pretrained(str(request.model_dir), trust_remote_code=False),
            iters=int(options["iters"]),
            dataset=told.dataset,
            nsamples=len(rows),
            seqlen=told.length,
            batch_size=min(8, len(rows)),
            device_map=request.device,
            enable_torch_compile=False,
            low_cpu_mem_usage=False,
            disable_model_free=True,
            seed=request.seed,
            **told.arguments,
            **unlearned,
        ).quantize_and_save(str(request.out_dir), format="auto_gptq")
    _tidy(request, told.mixture)
    _gptqmodel.check_by_unpacking(request)


def _tidy(request: QuantizeRequest, mixture: Mixture | None) -> None:
    """The export out of the folder of its own that the library makes; what is not quantized with the source's bits (the
    export casts all to float16, and stores a tied head once more); a config that says what is there."""
    from safetensors.torch import load_file, save_file

    for folder in [p for p in request.out_dir.iterdir() if p.is_dir()]:
        for path in folder.iterdir():
            path.replace(request.out_dir / path.name)
        folder.rmdir()
    (request.out_dir / "quantization_config.json").unlink(missing_ok=True)  # the same again, under a name that nobody reads
    _name_as_loaded(request)
    packed = gptq_file.packed_layers(request.out_dir)
    if not packed:
        raise Unsupported("the library packed no layer of this model; choose another method")
    held, name_of = source.kept(request.model_dir), build.renamed(request.model_dir)
    stored = {name_of(name): entry for name, entry in safetensors_file.checkpoint(request.model_dir).items()}
    kept: dict[str, str] = {}
    for path in sorted(request.out_dir.glob("*.safetensors")):
        state = {n: t for n, t in load_file(str(path)).items() if n in stored or n.rpartition(".")[0] in packed}
        for name in [n for n in state if n in stored]:
            state[name] = held(stored[name].name, safetensors_file.tensor(stored[name]))
        with draft_file(path) as draft:
            save_file(state, str(draft), metadata={"format": "pt"})
        kept.update(dict.fromkeys(state, path.name))
    index = request.out_dir / "model.safetensors.index.json"
    if index.is_file():
        index.write_text(json.dumps({"metadata": {}, "weight_map": kept}), encoding="utf-8")
    config = config_json.read(request.out_dir)
    said = config_json.mapping(config, quantization_config.KEY)
    quantization = {**{k: said[k] for k in _KEPT if k in said}, "checkpoint_format": "gptq"}
    if request.scheme.mixture is not None:
        mixture = mixture or _autoround_mixture.delivered(request)
        _mixture.check(request.out_dir, mixture, gptq_file.ledger(request.out_dir))
        quantization |= {"bits": _mixture.main(request, mixture), "dynamic": _mixture.dynamic(mixture)}
    if recipes.of(request.scheme) is not None:
        quantization |= _autoround_recipe.settings(request)
    config.pop("torch_dtype", None)
    config_json.write({**config, quantization_config.KEY: quantization, "dtype": "bfloat16"}, request.out_dir)
    (request.out_dir / "quantize_config.json").write_text(json.dumps(quantization, indent=2), encoding="utf-8")


def _name_as_loaded(request: QuantizeRequest) -> None:
    """Gives the tensors of the export the names of the loaded model's modules, by which GPTQModel reads them. The export goes
    back to those of the source's file (GPT-NeoX's head, Mixtral's blocks)."""
    from safetensors.torch import load_file, save_file

    name_of = build.renamed(request.model_dir)
    for path in sorted(request.out_dir.glob("*.safetensors")):
        state = load_file(str(path))
        layers = {name.removesuffix(".qweight") for name in state if name.endswith(".qweight")}
        names = {name: name_of(name) for name in state if name.rpartition(".")[0] not in layers}
        for name in state.keys() - names.keys():
            layer, _, part = name.rpartition(".")
            names[name] = f"{name_of(f'{layer}.weight').removesuffix('.weight')}.{part}"
        if any(old != new for old, new in names.items()):
            with draft_file(path) as draft:
                save_file({names[n]: t for n, t in state.items()}, str(draft), metadata={"format": "pt"})


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if scheme.options["iters"] and not scheme.options["opt_rtn"]:
        return "opt_rtn belongs to iters: 0; leave it out"
    if shape is not None and config_json.mapping(shape.config, "text_config"):
        return "the model has parts for other inputs than text, and AutoRound asks for samples of those; choose another method"
    return _gptqmodel.supports(scheme, shape, device)


UNTAKEN = {
    **_gptqmodel.UNTAKEN,
    "bloom": "AutoRound cannot run the blocks of Bloom by themselves, because their attention needs ALiBi's slopes",
    "falcon": "AutoRound packs no layer of Falcon, whose linear layers are of a class of their own",
}
"""Architectures that AutoRound was tried on, by model type."""

_ROW = _gptqmodel.row(
    name="autoround",
    version="2",
    title="AutoRound",
    bits=BITS,
    options={
        "group_size": Option(
            default=128, choices=_gptqmodel.ANY_GROUPS, help="weights that share one scale; channel: all of an output"
        ),
        "iters": Option(
            default=50, within=Range(least=0), help="steps per block (the library's default is 200); 0 = round to nearest"
        ),
        "opt_rtn": Option(default=True, choices=(True, False), help="at iters: 0, search the scales on the calibration text"),
    },
    quantize=_recipe.explained(quantize, "AutoRound"),
    recipe=_autoround_recipe.FILE,
    mixing=_autoround_mixture.MIXING,
    supports=supports,
    untaken=UNTAKEN,
    summary="rounding learned block by block with calibration text",
    source="Cheng et al. 2023, arXiv:2309.05516; AutoRound",
)

METHOD = replace(
    _ROW,
    requirements=("auto-round>=0.16,<0.17", *_gptqmodel.REQUIREMENTS),
    extra="autoround",
    modules=("auto_round", *_gptqmodel.MODULES),
)
