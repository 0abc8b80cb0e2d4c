"""What Jinja2, set up by transformers, makes of a chat template, and the turns that its texts define."""

import datetime
from dataclasses import dataclass

import jinja2
from transformers.utils import chat_template_utils

from templates_inspect import DAY


@dataclass
class Turns:
    """The text of a conversation and where in it each prompt and each response ends."""

    text: str
    ends: list[int]

    def responses(self) -> list[tuple[int, int]]:
        """Where each response begins and ends."""
        return list(zip(self.ends[::2], self.ends[1::2], strict=True))


@dataclass
class Refusal:
    """Why a conversation cannot be used. `raised`: in the template's own words, which ours must repeat."""

    reason: str
    raised: bool = True


class Template:
    """A compiled template; it sees `special` by name, as transformers shows special tokens."""

    def __init__(self, source: str, special: dict[str, str]):
        self.special = special
        self.compiled = chat_template_utils._compile_jinja_template(source)
        midnight = datetime.datetime.fromisoformat(DAY)
        self.compiled.globals["strftime_now"] = midnight.strftime

    def context(self, messages: list[dict], add_generation_prompt: bool) -> dict:
        return dict(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self.special
        )

    def render(self, messages: list[dict], add_generation_prompt: bool) -> str:
        """apply_chat_template(tokenize=False)."""
        return self.compiled.render(**self.context(messages, add_generation_prompt))

    def generation_spans(self, messages: list[dict]) -> list[tuple[int, int]]:
        """Where {% generation %} blocks stand in the text of a conversation: what transformers'
        apply_chat_template(return_assistant_tokens_mask=True) takes as the assistant's."""
        render = chat_template_utils._render_with_assistant_indices
        _, spans = render(self.compiled, **self.context(messages, False))
        return spans

    def turns(self, messages: list[dict]) -> Turns | Refusal:
        """The turns by string prefixes, as LLM Foundry defines them."""
        text, ends = "", []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                prompt = self.render(messages[:index], True)
                full = self.render(messages[: index + 1], False)
            except Exception as error:
                if type(error) is jinja2.exceptions.TemplateError:
                    return Refusal(f"the chat template refuses this conversation: {error.message}")
                return Refusal(f"{type(error).__name__}: {error}", raised=False)
            if not (prompt.startswith(text) and full.startswith(text)):
                return Refusal("the chat template rewrites earlier messages")
            if not full.startswith(prompt):
                return Refusal(f"the chat template renders message {index + 1} differently")
            ends += [len(prompt), len(full)]
            text = full
        return Turns(text, ends)
