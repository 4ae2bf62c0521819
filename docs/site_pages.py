"""A hook of mkdocs: pages that lie outside docs/ become pages of the site, and links are turned to where their targets then are.

The README is the home page, and CONTRIBUTING, CHANGELOG, SECURITY and the page of examples/ come along, so that nothing is
written twice. A link to a file that is no page (a module, a suite) leads to the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
"""A file of the repository -> the page of the site that shows it."""
_LINK = re.compile(r"(\]\()(?!https?://|#|mailto:)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page, which are written for readers of the repository."""
    written = {shown: source for source, shown in PAGES.items()}
    shown = page.file.src_uri
    here = written.get(shown, f"docs/{shown}")
    return _LINK.sub(lambda link: link[1] + target(link[2], here=here, page=shown, url=config.extra["repository"]), markdown)


def target(link: str, *, here: str, page: str, url: str) -> str:
    """Where a link in the file `here` leads on the site's page `page`.

    `link` is relative to `here`; `here` is a path in the repository, `page` a path among the site's pages."""
    meant = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
    shown = PAGES.get(meant) or (meant.removeprefix("docs/") if meant.startswith("docs/") else None)
    if shown is not None:
        return posixpath.relpath(shown, posixpath.dirname(page) or ".")
    kind = "tree" if (ROOT / meant).is_dir() else "blob"
    return f"{url.rstrip('/')}/{kind}/main/{meant}"
