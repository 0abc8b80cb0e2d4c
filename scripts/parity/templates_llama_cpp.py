"""Reads the cases of llama.cpp's tests/test-chat-template.cpp: template, expected text, special tokens."""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Who are you"},
    {"role": "assistant", "content": "   I am an assistant   "},
    {"role": "user", "content": "Another question"},
]
# Comments, string literals, numbers and words, and the marks around them.
TOKEN = re.compile(
    r'(?P<label>/\*.*?\*/)|(?P<comment>//[^\n]*)|(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>\w+)|(?P<mark>[{}(),;=])', re.S
)


@dataclass
class Case:
    """One `TestCase`."""

    name: str = ""
    template: str = ""
    # What llama.cpp's own Jinja engine is to give.
    expected: str = ""
    bos_token: str = ""
    eos_token: str = ""
    supported: bool = True
    # Messages after those of CONVERSATION.
    more: list[dict] = field(default_factory=list)


def cases(source: Path) -> list[Case]:
    """All cases of the file."""
    body = source.read_text().split("std::vector<TestCase> test_cases {", 1)[1]
    found, depth, texts, label = [], 0, [], ""
    fields: dict[str, list] = {}
    for token in TOKEN.finditer(body):
        kind, value = token.lastgroup, token.group()
        if kind == "label" and depth == 1:
            label = value.strip("/* .=")
            texts = fields.setdefault(label, [])
        elif kind == "text":
            texts.append(ast.literal_eval(value.replace("\n", "\\n")))
        elif kind == "word" and value in ("true", "false"):
            texts.append(value == "true")
        elif value == "{":
            depth += 1
        elif value == "}":
            depth -= 1
            if depth == 0:
                found.append(case_of(fields))
                fields = {}
            if depth < 0:
                break
    return found


def case_of(fields: dict[str, list]) -> Case:
    """A case from the literals after each field's label."""

    def text(label: str) -> str:
        return "".join(fields.get(label, []))

    extra = fields.get("extra_conversation", [])
    return Case(
        name=text("name"),
        template=text("template_str"),
        expected=text("expected_output_jinja") or text("expected_output"),
        bos_token=text("bos_token"),
        eos_token=text("eos_token"),
        supported=all(fields.get("supported_with_jinja", [True])),
        more=[{"role": role, "content": content} for role, content in zip(extra[::2], extra[1::2], strict=True)],
    )
