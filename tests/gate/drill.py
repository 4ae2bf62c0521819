"""A package whose probe scores scripted items, for tests of what happens between nights: which cells lose how many items is read
from the file `$DRILL` (`{"LABEL": LOST}`); in version 2 of the package every cell but the baseline loses `LOST_IN_2` more, in
version 3 it fails.

`wheel` makes it installable without an index; `offer` puts it into a folder as an installer leaves it."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from tests import plugin_site

ITEMS, LOST_IN_2, HANGS = 1000, 60, -2

CODE = """
import json
import os
import time
from pathlib import Path

import harness
from harness.probes.base import Probe
from harness.spec import Answer, Measurement, Metric, Question

METRIC = Metric(
    name="drill", title="Drill", unit="share", better="higher", definition="scripted items", samples="items", axis="quality"
)


def questions(requests):
    return [Question(probe="drill", subject="items")]


def measure(session, question):
    label, lost = session.cell.label, 0
    told = [Path(os.environ.get("DRILL", "/nowhere")), Path(harness.__file__).parent / "shapes" / "drill.json"]
    for path in told:
        if path.is_file():
            lost += json.loads(path.read_text()).get(label, 0)
    if lost == HANGS:
        time.sleep(600)
    lost += IN_THIS_VERSION if "16-bit" not in label else 0
    if lost < 0:
        raise RuntimeError("scripted")
    right = [i % 5 > 0 for i in range(ITEMS)]
    for i in [i for i, each in enumerate(right) if each][:lost]:
        right[i] = False
    items = [{"id": f"i{i}", "correct": float(each)} for i, each in enumerate(right)]
    blob = session.blob("drill", json.dumps({"items": items}).encode(), "json")
    value = sum(right) / len(right)
    sample = Measurement(metric="drill", value=value, definition="scripted items", unit="share", n=len(right), blob=blob)
    return Answer(measurements=(sample,))


PROBE = Probe(
    name="drill",
    title="Drill",
    version="1",
    metrics=(METRIC,),
    isolation="shared",
    questions=questions,
    measure=measure,
    needs_model=False,
)
"""


def code(version: str) -> str:
    lost = {"2": LOST_IN_2, "3": -1}.get(version[0], 0)
    return CODE.replace("IN_THIS_VERSION", str(lost)).replace("ITEMS", str(ITEMS)).replace("HANGS", str(HANGS))


def offer(site: Path, version: str = "1.0") -> None:
    plugin_site.offer(site, "drill-rows", version, {"probes": {"drill": "drill_rows:PROBE"}}, {"drill_rows.py": code(version)})


def wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel of `drill-rows`, or an empty one of another package."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": code(version) if name == "drill-rows" else "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "drill-rows":
        files[f"{info}/entry_points.txt"] = "[llm_quant_harness.probes]\ndrill = drill_rows:PROBE\n"
    rows = [f"{path},sha256={_hash(text)},{len(text.encode())}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in files.items():
            archive.writestr(place, text)
    return path


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
