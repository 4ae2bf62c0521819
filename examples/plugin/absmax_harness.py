"""absmax: every output channel is divided by its largest weight and rounded to int8. A method of another package."""

from harness.artifact import LayerKernel
from harness.formats import safetensors_file
from harness.methods import reload
from harness.methods.base import Method
from harness.models import build


def quantize(request):
    import torch
    from safetensors.torch import save_file

    model = build.plain(request.model_dir, torch.bfloat16, request.device)
    packed, dense = {}, {}
    for name in build.decoder_linears(model):
        weight = model.get_submodule(name).weight.detach().float().cpu()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        codes = (weight / scale).round().to(torch.int8)
        packed |= {f"{name}.codes": codes, f"{name}.scale": scale}
        dense[f"{name}.weight"] = codes * scale
    rest = {name: tensor for name, tensor in build.own_state(model).items() if name not in dense}
    save_file(packed | rest, request.out_dir / "model.safetensors", metadata={"format": "pt"})
    (request.out_dir / "config.json").write_bytes((request.model_dir / "config.json").read_bytes())
    reload.write_dense(request, dense | rest, "the packed weights, unpacked and run in float32")


def load(request):
    import torch
    from safetensors.torch import load_file

    class Absmax(torch.nn.Module):
        def forward(self, x):  # unpacked on each call: slow, and no more than one layer is held unpacked
            return torch.nn.functional.linear(x, (self.codes * self.scale).to(x.dtype), self.bias)

    state = load_file(request.artifact_dir / "model.safetensors", device=request.device)
    layers = {name.removesuffix(".codes"): Absmax() for name in state if name.endswith(".codes")}
    for name, layer in layers.items():
        layer.register_buffer("codes", state.pop(f"{name}.codes"))
        layer.register_buffer("scale", state.pop(f"{name}.scale"))
    model = build.without(request.artifact_dir, layers, state, device=request.device)
    for name, layer in layers.items():
        layer.bias = model.get_submodule(name).bias
        model.set_submodule(name, layer)
    return model.eval()


def kernels(model):
    layers = [name for name, module in model.named_modules() if type(module).__name__ == "Absmax"]
    return [LayerKernel(layer=n, module="Absmax", op="aten::linear", stored_dtype="int8", dequantized=False) for n in layers]


METHOD = Method(
    name="absmax", title="Largest weight of each channel", version="1", bits=(8,), options={}, engine="transformers",
    kernel_cpu={8: "slow"}, kernel_cuda={8: "slow"}, modules=("torch", "transformers"),
    quantize=quantize, load=load, kernels=kernels, bits_per_weight=lambda scheme: 8.0,
    supports=lambda scheme, shape, device: "it is quantized already" if shape and "quantization_config" in shape.config else None,
    ledger=lambda out, scheme: safetensors_file.ledger(out, safetensors_file.by_suffix({"codes": "weight", "scale": "scale"})),
)  # fmt: skip
