"""How soon a page answers: from its opening, and from a moved control, in a headless Chromium. Medians are printed.

    python tests/benchmarks/bench_page.py                         # the report of 506 synthetic cells
    python tests/benchmarks/bench_page.py --page reports/quick.html

On an idle machine. `interactive`: from the start of the navigation until the controls have answered for the first time;
`charts`: until all charts stand. For each control: `answered` is the script's own time until the answer, the table and the
reasons are replaced, `painted` the time until the browser has painted them, `chart` until the chart has followed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from harness import store
from harness.report import render
from tests.report import browser, synthetic

MODELS = 23

OPENED = "[Number(document.documentElement.dataset.interactive), Number(document.documentElement.dataset.charts)]"

MOVED = """(async ([id, value, kind]) => {{
  const control = document.getElementById(id), told = document.documentElement.dataset;
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  await frame();
  const before = told.draws, start = performance.now();
  control.value = value;
  control.dispatchEvent(new Event(kind, {{ bubbles: true }}));
  while (told.draws === before) await frame();
  return [Number(told.decided), Number(told.painted), performance.now() - start];
}})({})"""

CONTROLS = (
    ("a memory limit", "max-memory", ("0.03", "0.05", ""), "input"),
    ("the loss allowed", "max-loss", ("0.5", "2", "1"), "input"),
    ("the preference", "prefer", ("speed", "quality", "size"), "change"),
    ("another model", "pareto-model", ("1", "2", "0"), "change"),
    ("all models at once", "pareto-model", ("all",), "change"),
    ("a memory limit, all models", "max-memory", ("0.03", "0.05", ""), "input"),
)
"""In this order: the last two with all models in the chart."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="a report; by default that of 506 synthetic cells")
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    program = browser.find()
    if program is None:
        raise SystemExit("no Chromium is installed; add one with: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        path = asked.page
        if path is None:
            models = [f"model-{i}" for i in range(MODELS)]
            path = Path(folder) / "report.html"
            path.write_bytes(render(store.read(synthetic.write(Path(folder) / "results", models=models))))
        size = path.stat().st_size
        opened: list[list[float]] = []
        moved: dict[str, list[list[float]]] = {}
        for _ in range(asked.times):
            with browser.page(program) as page:
                page.open(path.resolve())
                opened.append(page.evaluate(OPENED))
                for name, control, values, kind in CONTROLS:
                    if page.evaluate(f"!!document.getElementById({json.dumps(control)})"):
                        for value in values:
                            took = page.evaluate(MOVED.format(json.dumps([control, value, kind])))
                            moved.setdefault(name, []).append(took)
    interactive, charts = (statistics.median(row) for row in zip(*opened, strict=True))
    print(f"page of {size / 1e6:.2f} MB: interactive after {interactive:.0f} ms, charts after {charts:.0f} ms")
    for name, rows in moved.items():
        answered, painted, chart = (statistics.median(row) for row in zip(*rows, strict=True))
        print(f"{name:28} answered {answered:5.0f} ms, painted {painted:5.0f} ms, chart {chart:5.0f} ms")


if __name__ == "__main__":
    main()
