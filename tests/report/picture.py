"""Makes a picture of a report, by default of the size of the README's. Needs Chromium.

python -m tests.report.picture reports/quick.html docs/report.png [WIDTH HEIGHT]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.report import browser


def main(html: str, png: str, width: str = "1400", height: str = "1900") -> None:
    program = browser.find()
    if program is None:
        raise SystemExit(browser.LACKING)
    with browser.page(program) as page:
        page.open(Path(html).resolve(), width=int(width), height=int(height))
        time.sleep(1)  # fonts and the charts' transitions settle
        page.screenshot(Path(png), full=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
