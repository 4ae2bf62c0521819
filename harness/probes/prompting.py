"""How a task's prompts are put to a model: as they stand, or as a conversation in the words of its chat template.

What is chosen here is lm-eval's `--apply_chat_template`, `--system_instruction` and `--fewshot_as_multiturn`, to the letter of
lm-eval 0.4.13 but for two things. A template's name chooses the template: lm-eval writes the name into its log and applies the
default one. A system message of the suite that the template leaves out is refused: lm-eval goes on without it.

Without a template a system text stands before the prompt, with nothing between (lm-eval's rule; the task's description, where it
has one, comes after it, set off by the delimiter of examples).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput, Unsupported
from harness.models import chat
from harness.scoring.chat import Conversations, told_the_day
from harness.spec import Json, Question

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedTokenizerBase

CHAT, SYSTEM = "chat", "system"
SHOWN = 12
"""Digits of a digest that stand in a definition."""
MOST_NAMES = 4
"""Tasks that a note names; of more it gives the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompting:
    """`template`: True is the tokenizer's own or default chat template, a text the name of one, False none. `multiturn`: few-shot
    examples are turns of the conversation, else they stand in its one question. `system`: the system message.

    Known once the model is here: `digest` is the SHA-256 of the template, `day` (ISO 8601) the date that one which asks for it is
    told."""

    template: bool | str = False
    multiturn: bool = False
    system: str | None = None
    digest: str = ""
    day: str = ""

    def options(self) -> dict[str, Json]:
        """What a question's options say of it: nothing where prompts stay as they stand. `prompting_of` reads it."""
        known = {name: value for name, value in (("digest", self.digest), ("day", self.day)) if value}
        return {
            **({CHAT: {"template": self.template, "multiturn": self.multiturn, **known}} if self.template else {}),
            **({SYSTEM: self.system} if self.system else {}),
        }

    def of(self, template: str, today: str) -> Prompting:
        """The same with the template that is meant, and with the date where the template asks for it."""
        return replace(self, digest=_sha256(template), day=today if chat.asks_for_the_day(template) else "")

    def said(self, task: Task, *, shots: int) -> str:
        """The part of a definition that tells scores of this kind from others; '' where prompts stay as they stand."""
        parts: list[str] = []
        if _whole_documents(task):
            return ""
        if self.template:
            name = f" {self.template!r}" if isinstance(self.template, str) else ""
            parts.append(f"chat template{name} {self.digest[:SHOWN]}{f' on {self.day}' if self.day else ''}")
            if shots:
                parts.append("examples as turns" if self.multiturn else "examples in one turn")
        if self.system:
            parts.append(f"system {'message' if self.template else 'text'} {_sha256(self.system)[:SHOWN]}")
        return "".join(f", {part}" for part in parts)


AS_THEY_STAND = Prompting()
"""Prompts as lm-eval makes them, without a conversation: its default."""


def prompting_of(question: Question) -> Prompting:
    """How a question asks; the inverse of `Prompting.options`."""
    asked = question.options.get(CHAT) or {}
    return Prompting(
        template=asked.get("template", False),
        multiturn=bool(asked.get("multiturn", False)),
        system=question.options.get(SYSTEM),
        digest=str(asked.get("digest", "")),
        day=str(asked.get("day", "")),
    )


def build(tasks: Mapping[str, Task], asked: Prompting, tokenizer: PreTrainedTokenizerBase | None, limit: int | None) -> list[str]:
    """Builds the requests of configured tasks, of their first `limit` items (None: all); returns what is to be said of them.

    BadInput where the tokenizer has no such template, or where the template leaves the suite's system message out. Unsupported
    where a task makes its prompts in a way of its own, in which neither template nor system message has a place."""
    chats = _conversations(asked, tokenizer)
    undescribed = []
    with told_the_day(asked.day):
        for name, task in tasks.items():
            before = (0, 0) if chats is None else (chats.written, chats.without_system)
            task.build_all_requests(limit=limit, **_arguments(asked, chats))
            if _whole_documents(task):
                continue
            if chats is not None and chats.written == before[0]:
                raise Unsupported(f"task {name!r} makes its prompts without a chat template; ask it with chat_template: false")
            if chats is not None and chats.without_system > before[1]:
                if asked.system:
                    raise BadInput(f"task {name!r}: {LEFT_OUT}")
                undescribed.append(name)
            if chats is None and asked.system and not str(task.instances[0].args[0]).startswith(asked.system):
                raise Unsupported(f"task {name!r} makes its prompts without a system text; take `system` out")
    which = ", ".join(undescribed) if len(undescribed) <= MOST_NAMES else f"{len(undescribed)} tasks"
    return [f"{which}: the chat template takes no system message, so the task's description is left out"] if undescribed else []


def _whole_documents(task: Task) -> bool:
    """Whether a task scores documents from their beginning: lm-eval puts neither template nor system message before them."""
    return bool(task.OUTPUT_TYPE == "loglikelihood_rolling")


LEFT_OUT = (
    "the chat template leaves the system message out, so that `system` would change nothing; take `system` out, and put what it "
    "says into the task"
)


def _conversations(asked: Prompting, tokenizer: PreTrainedTokenizerBase | None) -> Conversations | None:
    if not asked.template:
        return None
    assert tokenizer is not None
    template = chat.chosen(chat.of_tokenizer(tokenizer), asked.template, "this model")
    if _sha256(template) != asked.digest:
        raise BadInput(
            f"the tokenizer was loaded with another chat template ({_sha256(template)[:SHOWN]}) than its files hold "
            f"({asked.digest[:SHOWN]}); save it again: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return Conversations(tokenizer=tokenizer, arguments={"chat_template": template})


def _arguments(asked: Prompting, chats: Conversations | None) -> dict[str, Any]:
    """What lm-eval's `evaluate` passes on for its three flags."""
    return {
        "system_instruction": asked.system or None,
        "apply_chat_template": chats is not None,
        "fewshot_as_multiturn": asked.multiturn,
        "chat_template": chats,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
