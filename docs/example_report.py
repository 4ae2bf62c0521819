"""Makes the report that the documentation site publishes, of measurements that lie in results/quick.

Where none lie there, the quick suite is run first (minutes): the report shows what was measured here, never a stored page.

    python docs/example_report.py [RESULTS]      # writes docs/example-report.html
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUITE = "quick"
TARGET = Path("docs") / "example-report.html"


def main(results: Path) -> int:
    """0, or the exit code of the command that failed."""
    command = [sys.executable, "-m", "harness.cli"]
    if not any(results.glob("*.jsonl")):
        print(f"{results}: nothing measured yet; running the suite {SUITE}", flush=True)
        done = subprocess.run([*command, "run", SUITE, "--results", str(results.parent)], check=False)
        if done.returncode:
            return done.returncode
    return subprocess.run([*command, "report", str(results), "-o", str(TARGET)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("results") / SUITE))
