"""Chat templates: how a conversation becomes text, and which token can stand between conversations.

    messages, tools ─► ChatTemplate.render ─► the text, and the spans of its {% generation %} blocks

Transformers renders. A template that asks for today's date gets 26 July 2024, the date that Llama's templates fall back
to: a pack is a pure function of its source, on every day.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from rskd.errors import ConfigError, first_line
from rskd.models.tokenizer import end_of_text_id

Message = dict[str, Any]

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as Transformers finds them
_ANSWER = "\ufdd2"  # a noncharacter: no template has it
_SAMPLE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_DATE = {"%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%A": "Friday", "%a": "Fri"}
_FIXED_DATE = "{% macro strftime_now(format) %}{{ format" + "".join(
    f' | replace("{code}", "{value}")' for code, value in _DATE.items()
)
_FIXED_DATE += ' | replace("%H", "00") | replace("%M", "00") | replace("%S", "00") }}{% endmacro %}'


class Rendering(NamedTuple):
    """A conversation as text, and where its {% generation %} blocks are, in characters: first and one past the last."""

    text: str
    generated: list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the tokens that it may write."""

    text: str
    special_tokens: dict[str, str]  # as templates call them: bos_token, eos_token, …
    control_tokens: tuple[str, ...]  # all special tokens of the tokenizer

    def render(
        self, messages: Sequence[Message], tools: list[Any] | None = None, *, add_generation_prompt: bool = False
    ) -> Rendering:
        """The text of `apply_chat_template(messages, tools, tokenize=False)`; keys that are None are left out.

        A lone surrogate, which JSON can spell, becomes "?". Raises what the template and Jinja raise.
        """
        render: Any = render_jinja_template
        [text], generated = render(
            conversations=[[{key: value for key, value in one.items() if value is not None} for one in messages]],
            tools=tools,
            chat_template=fixed_date(self.text),
            return_assistant_tokens_mask=self.marks_generation,
            add_generation_prompt=add_generation_prompt,
            **self.special_tokens,
        )
        whole = text if text.isascii() else text.encode("utf-8", errors="replace").decode()
        return Rendering(whole, generated[0] if generated else [])

    @cached_property
    def marks_generation(self) -> bool:
        """Whether it says itself, by {% generation %} blocks, what the assistant wrote."""
        return _GENERATION_BLOCK.search(self.text) is not None

    @property
    def named_tokens(self) -> dict[str, str]:
        """The special tokens that it has by their names."""
        return {name: token for name, token in self.special_tokens.items() if name in self.text}

    def writes(self, token: str) -> bool:
        """Whether the template has the token in it, as text or by its name, or makes it of a role."""
        return token in self.text or token in self._samples or token in self.named_tokens.values()

    @cached_property
    def _samples(self) -> str:
        """What it writes of messages of the usual roles: templates have '<|' + role + '|>'."""
        samples = []
        for role in _ROLES:
            message = {"role": role, "content": "a"}
            for messages in ([message], [*_SAMPLE, message], [message, *_SAMPLE]):
                with suppress(Exception):  # a template may refuse what it likes
                    samples.append(self.render(messages, add_generation_prompt=True).text)
        return "\n".join(samples)


def fixed_date(template: str) -> str:
    """The template, to which today is 26 July 2024."""
    return _FIXED_DATE + template if "strftime_now" in template else template


def chat_template(tokenizer: PreTrainedTokenizerFast, wanted: str | None) -> ChatTemplate:
    """The template of `corpus.chat_template`, a Jinja text or the path of a file; by default the tokenizer's own.

    Raises ConfigError if there is none, if it is no Jinja, or if what the assistant writes cannot be told from it.
    """
    text = _own(tokenizer) if wanted is None else wanted if "{{" in wanted or "{%" in wanted else _from_file(wanted)
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    control = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    template = ChatTemplate(text, special, control)
    try:
        whole = template.render(_SAMPLE).text
        prompt, closed = (template.render(_SAMPLE[:1], add_generation_prompt=add).text for add in (True, False))
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template is no Jinja ({first_line(error)}, line {error.lineno}): correct it, or set "
            "corpus.chat_template to another"
        ) from None
    except Exception:  # a template may refuse any conversation; those of the corpus are to be seen
        return template
    header = whole[len(prompt) :].partition(_ANSWER)[0].strip() if whole.startswith(prompt) else ""
    if prompt == closed and header and not template.marks_generation:
        raise ConfigError(
            f"the chat template writes {header!r} before an answer, but not where add_generation_prompt asks for it, "
            "so what the assistant wrote cannot be found: correct corpus.chat_template, or add {% generation %} blocks"
        )
    return template


def separator_id(tokenizer: PreTrainedTokenizerFast, template: ChatTemplate, num_ids: int) -> int:
    """The id that stands after each conversation and fills windows: a special token that the template never writes.

    The end-of-text token where that is one; `num_ids` is the teacher's number of output rows. Raises ConfigError if
    there is none.
    """
    special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    # The last choices: what begins a text, and what may come from one unless the tokenizer falls back to bytes.
    last: list[Any] = [tokenizer.bos_token_id, tokenizer.unk_token_id]
    for index in [end_of_text_id(tokenizer), tokenizer.pad_token_id, *sorted(special.keys() - {*last}), *last]:
        if index in special and index < num_ids and not template.writes(special[index]):
            return index
    raise ConfigError(
        f"the chat template writes every special token of tokenizer {tokenizer.name_or_path}, so that none can stand "
        "between conversations: set corpus.chat_template to one that leaves a token out, or add a special token"
    )


def end_of_turn_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the tokenizer's chat template puts after what the assistant said; None if it puts none.

    None, too, for a template that refuses a question with its answer, also after a message of the system.
    """
    if tokenizer.chat_template is None:
        return None
    whole = ""
    for sample in (_SAMPLE, [{"role": "system", "content": "a"}, *_SAMPLE]):
        with suppress(Exception):  # a template may refuse what it likes
            whole = str(tokenizer.apply_chat_template(sample, tokenize=False))
            break
    ids = tokenizer(whole.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((index for index in ids if index in special), None)


def _own(tokenizer: PreTrainedTokenizerFast) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):
        named = ", ".join(own)
        raise ConfigError(
            f"tokenizer {tokenizer.name_or_path} has several chat templates ({named}): save the one that you want as a "
            "file, and set corpus.chat_template to its path"
        )
    if not own:
        raise ConfigError(
            f"tokenizer {tokenizer.name_or_path} has no chat template: set corpus.chat_template to a Jinja template, "
            "or to the path of one"
        )
    return own


def _from_file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"corpus.chat_template={path} is neither a Jinja template nor a file that can be read "
            f"({first_line(error)}): correct the path"
        ) from None
