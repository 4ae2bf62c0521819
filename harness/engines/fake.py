"""The scripted engine of the tests: it answers what the artifact's script says."""

from __future__ import annotations

from typing import cast

from harness.engines.base import EngineFacts, Loaded
from harness.methods.base import LoadRequest, Method


class Scripted:
    """What the scripted engine loads: enough for a reload check that has nothing to compare."""

    def __init__(self, model: object) -> None:
        self.model = model

    def facts(self) -> EngineFacts:
        return EngineFacts(engine="fake", device="cpu", kernels=(), simulated=False, resident_weight_bytes=0)


def load(method: Method, request: LoadRequest) -> Loaded:
    """The script, as a loaded artifact that can say its facts and nothing else."""
    return cast(Loaded, Scripted(method.load(request)))
