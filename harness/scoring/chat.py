"""A conversation as the text that a model is asked: a tokenizer's chat template, applied as lm-eval's `hf` applies it."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput, Unsupported
from harness.models.chat import holds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""A turn of a conversation: its `role` (system, user, assistant) and its `content`."""


@dataclass(slots=True, kw_only=True)
class Conversations:
    """Applies the template of a tokenizer. `arguments`: further ones of `apply_chat_template`.

    `written` counts conversations; `without_system` those of them whose system message is not in what the template wrote: it
    refused the message, or it leaves such messages out.
    """

    tokenizer: PreTrainedTokenizerBase
    arguments: Mapping[str, Any] = field(default_factory=dict)
    written: int = 0
    without_system: int = 0

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation. Without `add_generation_prompt` it ends inside the last message, which is to be gone on
        with. A template that refuses a system message gets the conversation without it (as lm-eval does). Unsupported where it
        refuses that one too; BadInput where the template itself is broken, or writes nothing."""
        import jinja2

        system = [message["content"] for message in messages if message["role"] == "system"]
        try:
            text = self._written(messages, add_generation_prompt)
        except jinja2.exceptions.TemplateSyntaxError as error:
            raise self._broken(f"line {error.lineno}: {error.message}") from error
        except jinja2.exceptions.TemplateError:
            plain = [message for message in messages if message["role"] != "system"]
            try:
                text = self._written(plain, add_generation_prompt)
            except jinja2.exceptions.TemplateError as error:
                if self._refuses_all():
                    raise self._broken(f"it refuses every conversation: {error}") from error
                roles = ", ".join(message["role"] for message in messages)
                raise Unsupported(f"the chat template refuses a conversation of {roles}: {error}") from error
        if not text:
            raise self._broken("it writes nothing")
        self.written += 1
        self.without_system += not all(holds(text, part) for part in system)
        return text

    def _broken(self, why: str) -> BadInput:
        place = getattr(self.tokenizer, "name_or_path", "") or "the tokenizer"
        return BadInput(
            f"{place}: its chat template (chat_template.jinja, or tokenizer_config.json) is broken: {why}; fetch or save the "
            "tokenizer again, or mend it"
        )

    def _refuses_all(self) -> bool:
        import jinja2

        try:
            self._written([{"role": "user", "content": "Which city has more water?"}], True)
        except jinja2.exceptions.TemplateError:
            return True
        return False

    def _written(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.arguments,
        )
        return str(text)


@contextlib.contextmanager
def told_the_day(day: str) -> Iterator[None]:
    """Templates that ask for the date are told midnight of this one (ISO 8601): cells of a run that passes midnight, or of one
    that is gone on with, would be asked other questions. '' leaves transformers' clock as it is."""
    if not day:
        yield
        return
    from transformers.utils import chat_template_utils

    its: Any = chat_template_utils
    midnight = datetime.datetime.fromisoformat(day)

    class Standing(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Standing:
            return cls.combine(midnight.date(), midnight.time(), tz)

    plain = its.datetime
    its.datetime = Standing
    try:
        yield
    finally:
        its.datetime = plain
