"""What a process imports of vLLM before it loads a model, imported for its effect: the memory probe does so before it counts."""

from __future__ import annotations

from contextlib import suppress

from harness.runtimes.vllm import quiet

quiet()
with suppress(ImportError):  # another version, or no vLLM at all: loading says so
    import vllm.engine.arg_utils
    import vllm.sampling_params
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.gpu_worker  # noqa: F401 - for the effect
