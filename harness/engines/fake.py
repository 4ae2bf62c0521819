"""The scripted engine of the tests: it answers what the artifact's script says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.methods.fake import ARTIFACT


class Scripted:
    """What the scripted engine loads: enough for a reload check that has nothing to compare."""

    def __init__(self, artifact_dir: Path) -> None:
        self.model = json.loads((artifact_dir / ARTIFACT).read_text())

    def facts(self) -> Any:
        from harness.engines.base import EngineFacts

        return EngineFacts(engine="fake", device="cpu", kernels=(), simulated=False, resident_weight_bytes=0)
