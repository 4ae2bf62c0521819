"""What lies in a file: safetensors, GGUF, OpenVINO IR, compressed-tensors, GPTQ packing. Nothing here runs a model."""
