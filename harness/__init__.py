"""quant-harness: which quantization of a language model to deploy, measured honestly."""
