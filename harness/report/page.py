"""The page around the sections: head, navigation, data blocks, scripts. Self-contained, and closed to the network by its policy.

The Content-Security-Policy allows exactly two scripts, by hash: ours, and plotly.js as the installed plotly package ships it.
Nothing may be loaded or sent: no connections, frames, forms, fonts or images but those in the page. What is large, plotly.js and
the numbers, lies there packed. Our script unpacks plotly.js and adds it as an element, which the policy allows only if it is, to
the byte, the one that was packed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from harness.report.answer import Offer
from harness.report.charts import payload
from harness.report.markup import Markup, data_block, el, join, packed_block, raw
from harness.report.section import Section, shapes
from harness.report.view import View

STYLES = ("report.css", "sections.css", "explore.css")
NO_SCRIPT = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The policy of pages that need no script."""
SCRIPTS = ("decide.js", "chart.js", "explore.js", "report.js", "sections.js")
"""Of `assets/`, in the order in which they are read: each uses those before it. The scripts are one, which waits for its data."""


def library() -> bytes:
    """plotly.js as its package ships it, for pages that share it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).encode()


def page(view: View, offered: Offer, sections: Sequence[Section], shared: str | None = None) -> bytes:
    """UTF-8 bytes of the page. `shared`: where `library` lies for it, from the page on; by default the page holds it itself.

    Shared, it is allowed as a file of the page's own site ('self'). Its hash would be no help: browsers refuse to check the hash
    of a file that is not served, and a site has to open from a disk, too."""
    plotly = None if shared else _inert(library().decode())
    script = f'(async () => {{\n"use strict";\n{"".join(map(_asset, SCRIPTS))}}})();\n'
    policy = _policy(script, shared=True) if plotly is None else _policy(plotly, script)
    body = el(
        "body",
        navigation(sections),
        shapes(),
        main(sections),
        el("div", id="tip", role="tooltip", hidden=True),
        data_block("data", payload(view)),
        data_block("offer", offered),
        el("script", src=shared) if plotly is None else packed_block("plotly", plotly),
        el("script", raw(script)),
    )
    return document(view.title or view.suite or view.run, policy, body)


def document(title: str, policy: str, body: Markup, *, style: str = "") -> bytes:
    """A whole page around its body: in the look of the report, closed to the network by `policy`. `style`: what it needs beside
    the report's own style sheets, a literal of this package."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        raw(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("meta", name="generator", content="quant-harness"),
        el("title", f"{title} · quant-harness"),
        el("style", raw("".join(map(_asset, STYLES)) + style)),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n".encode()


def navigation(sections: Sequence[Section]) -> Markup:
    """The bar at the top, and before it the link that skips it."""
    skip = el("a", "Skip to the results", href=f"#{sections[0].id}" if sections else "#main", cls="skip")
    links = el("div", *(el("a", s.nav, href=f"#{s.id}") for s in sections), cls="links")
    bar = el("div", el("span", "quant-harness", cls="brand"), links, cls="wide")
    return join(skip, el("nav", bar, aria_label="Sections"))


def main(sections: Sequence[Section]) -> Markup:
    return el("main", *(_section(s, first=i == 0) for i, s in enumerate(sections)), id="main")


def _section(section: Section, first: bool) -> Markup:
    heading = el("h1" if first else "h2", section.title, id=f"{section.id}-title")
    lead = el("p", section.lead, cls="lead") if section.lead else None
    return el("section", join(heading, lead), section.body, id=section.id, aria_labelledby=f"{section.id}-title")


def _policy(*scripts: str, shared: bool = False) -> str:
    own = "'self' " if shared else ""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {own}{hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (resources.files("harness.report") / "assets" / name).read_text(encoding="utf-8")


def _inert(script: str) -> str:
    """A library's text that cannot end its element early, with line ends as browsers hash them."""
    return script.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")
