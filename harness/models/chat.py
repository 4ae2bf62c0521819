"""Chat templates of a model's tokenizer, read from its files as transformers reads them, without importing it.

A tokenizer has none, one, or several with names. They lie in `chat_template.jinja`, in a folder beside it, or in
`tokenizer_config.json`, which counts only where there is no such file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput, UnknownName
from harness.models import find, hub, repository
from harness.spec import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Templates = Mapping[str, str]
"""The texts of a tokenizer's templates by name; one without a name is called `default`."""

DEFAULT = "default"
_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"


def of_model(source: Model) -> Templates | None:
    """The templates of a model's tokenizer. Of a model on the hub that is not here, only the files that hold them are fetched.
    None where the hub cannot be reached for them."""
    folder = find.locate(source)
    if folder is not None:
        return in_folder(folder)
    snapshot = repository.snapshot_of(source)
    what = f"model {source.name!r}"
    known = None if snapshot is None else hub.files(snapshot, what=what)
    if snapshot is None or known is None:
        return None
    names = [name for name in known if name in (_FILE, _CONFIG) or re.fullmatch(rf"{repository.TEMPLATES}/[^/]+\.jinja", name)]
    if any(hub.one(snapshot, name, what=what) is None for name in names):
        return None
    return in_folder(snapshot.folder)


def in_folder(folder: Path) -> Templates:
    """The templates in a model's folder. BadInput for a file that is no text; none where the tokenizer's configuration is
    damaged, which loading it says better."""
    own = folder / _FILE
    found = {DEFAULT: _text(own)} if own.is_file() else {}
    more = sorted((folder / repository.TEMPLATES).glob("*.jinja"))
    found |= {path.name.removesuffix(".jinja"): _text(path) for path in more}
    if found:
        return found
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return _named(config.get("chat_template")) if isinstance(config, dict) else {}


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Templates:
    """The templates of a loaded tokenizer."""
    return _named(getattr(tokenizer, "chat_template", None))


def chosen(templates: Templates, wish: bool | str, whose: str) -> str:
    """The text of the template that is meant: by its name, or the default one (True). BadInput or UnknownName where there is no
    such template; `whose` begins the message: "model 'mine'"."""
    if not templates:
        raise BadInput(
            f"{whose}: its tokenizer has no chat template, so there is no conversation that it is served with; take "
            "`chat_template` out, or add the template of the model that it was made of as chat_template.jinja"
        )
    name = wish if isinstance(wish, str) else DEFAULT
    if name in templates:
        return templates[name]
    if isinstance(wish, str):
        raise UnknownName("chat template", wish, templates, whose)
    raise BadInput(
        f"{whose}: its tokenizer has several chat templates and no default one; name it: chat_template: "
        f"{' or '.join(sorted(templates))}"
    )


def asks_for_the_day(template: str) -> bool:
    """Whether a template puts the date into what it writes, so that a prompt is another one each day."""
    return "strftime_now" in template


def broken(template: str) -> str | None:
    """Why a template writes no conversation at all; None where it does, and where only the tokenizer could tell. It is
    compiled as transformers does it, and asked for one question of a user."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Refused(Exception):
        pass

    def refuse(said: object) -> None:
        raise Refused(str(said))

    rules = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    rules.globals.update(raise_exception=refuse, strftime_now=lambda form: form)
    try:
        compiled = rules.from_string(_GENERATION.sub("", template))
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    question = "Which city has more water?"
    special = {"bos_token": "", "eos_token": "", "pad_token": "", "unk_token": ""}
    try:
        text = compiled.render(messages=[{"role": "user", "content": question}], add_generation_prompt=True, **special)
    except Refused as error:
        return f"it refuses a single question of a user: {error}"
    except Exception:  # it may need what only the tokenizer gives, and a template may raise what it likes: the run tells
        return None
    return None if holds(text, question) else "what a user says is not in what it writes"


_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""transformers' own tag, which marks what the model said and writes nothing."""


def file_of(source: Model, name: str) -> str:
    """Where a model's template of this name is written, for messages."""
    place = str(find.locate(source) or source.repo or source.path)
    if source.repo is not None and find.locate(source) is None:
        return f"the chat template {name!r} of {place}"
    folder = Path(place)
    own = folder / _FILE if name == DEFAULT else folder / repository.TEMPLATES / f"{name}.jinja"
    return str(own if own.is_file() else folder / _CONFIG)


def leaves_out(template: str, system: str) -> str | None:
    """Why a system message is not in what the template writes; None where it is, and where only the tokenizer could tell."""
    from transformers.utils.chat_template_utils import render_jinja_template

    question = {"role": "user", "content": "Which city has more water?"}

    def written(conversation: list[dict[str, str]]) -> str:
        special: dict[str, Any] = {"bos_token": "", "eos_token": "", "pad_token": "", "unk_token": ""}
        return str(render_jinja_template([conversation], chat_template=template, add_generation_prompt=True, **special)[0][0])

    try:
        text = written([{"role": "system", "content": system}, question])
    except Exception as error:  # a template may raise what it likes
        try:
            written([question])
        except Exception:  # without one as well: it needs what only the tokenizer gives
            return None
        return f"it says: {error}"
    return None if holds(text, system) else "it leaves it out"


def holds(text: str, message: str) -> bool:
    """Whether a message is in what a template wrote, which may trim and indent it."""
    return "".join(message.split()) in "".join(text.split())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: the chat template cannot be read ({error}); fetch or save the tokenizer again") from None


def _named(value: object) -> Templates:
    """Templates as `tokenizer_config.json` and a loaded tokenizer hold them: a text, a list of names and texts, or a mapping."""
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        return {str(entry["name"]): str(entry["template"]) for entry in value if isinstance(entry, dict) and "template" in entry}
    return {str(name): str(text) for name, text in value.items()} if isinstance(value, dict) else {}
