"""Families of quantization that no row offers, each with the reason and what would have to be there. Nothing that people read
about is silently absent: `quant-harness methods` lists them, and a suite that names one is told why.

Each reason was read in the library's source or tried by hand (transformers 5.23, GPTQModel 7.6, 2026-11); none is a judgement.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`instead`: what of this project comes near, or measures a checkpoint that was made elsewhere."""

    name: str
    title: str
    why: str
    instead: str

    def __str__(self) -> str:
        return f"{self.name} ({self.title}) is not offered: {self.why}; {self.instead}"


_GIVEN = "give a checkpoint that was made so as a model (prequantized) where transformers has its kernels"

FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="aqlm",
            title="additive codebooks",
            why="the library has no quantizer, and its authors' takes days of a GPU for a model",
            instead="a given AQLM checkpoint is measured (prequantized), on a CPU by the library's numba kernels: "
            "pip install 'aqlm[cpu]'",
        ),
        Family(
            name="vptq",
            title="vector post-training quantization",
            why="its kernels and transformers' loader ask for a GPU",
            instead=_GIVEN,
        ),
        Family(
            name="higgs",
            title="Hadamard rotation and Gaussian grids",
            why="transformers quantizes and runs it on a GPU only (package flute-kernel)",
            instead=_GIVEN,
        ),
        Family(
            name="spqr",
            title="sparse outliers beside few bits",
            why="transformers loads it on a GPU only, and nothing that can be installed quantizes to it",
            instead=_GIVEN,
        ),
        Family(
            name="fpquant",
            title="NVFP4 and MXFP4 with Hadamard rotation",
            why="transformers wants a GPU or an XPU for it (package fp-quant)",
            instead="llmcompressor type: nv and type: mx write these formats, gguf types NVFP4 and MXFP4 run on a CPU",
        ),
        Family(
            name="quip",
            title="QuIP#, QTIP: lattice and trellis codes",
            why="no package of the Python index holds them",
            instead="the nearest codes of few bits that run here are gguf's IQ2 and IQ3 types",
        ),
        Family(
            name="exl3",
            title="EXL3: trellis codes of ExLlamaV3",
            why="GPTQModel quantizes to it with CUDA streams only",
            instead="the nearest codes of few bits that run here are gguf's IQ2 and IQ3 types",
        ),
        Family(
            name="paroquant",
            title="pairwise rotations, then rounding",
            why="transformers loads its checkpoints as plain layers without an error, and they answer garbage; GPTQModel's own "
            "path was not tried",
            instead="awq scales channels against outliers, and runs here",
        ),
        Family(
            name="sinq",
            title="Sinkhorn-normalized rounding without data",
            why="the package patches every Python process of its environment (sitecustomize) and brings CUDA builds of "
            "torchvision, torchaudio and gemlite",
            instead="hqq fits scale and zero point to the weights without data, too",
        ),
        Family(
            name="loftq",
            title="adapters that start from the rounding error",
            why="PEFT's LoftQ computes on CUDA or an XPU, whatever the model is on (peft/utils/loftq_utils.py)",
            instead="qlora trains an adapter on quantized weights here",
        ),
    )
}
