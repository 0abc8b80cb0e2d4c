"""Conversations that try what templates do to texts: blanks, empty texts, marks, other scripts."""


def chat(*contents: str, system: str | None = None) -> list[dict]:
    """A conversation in which user and assistant take turns."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant") * (len(contents) // 2)
    return opening + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


TWO_TURNS = chat("Who?", "Me.", "Why?", "Because.", system="You are terse.")
CONVERSATIONS = {
    "one turn": chat("Hello", "Hi there"),
    "system": chat("Hello", "Hi there", system="Be brief."),
    "three turns": chat("a", "b", "c", "d", "e", "f"),
    "system, two turns": TWO_TURNS,
    "unicode": chat("Grüße, 東京! 🙂‍↔️ \u0301e", "שלום ﷽ ＡＢＣ ﬁ ǆ", system="İstanbul ß"),
    "blanks around": chat(
        "  \n\tpadded \n", "\n\n  indented\n    code  \n", "\u00a0nbsp\u2003", " \u200bzero\ufeff ", system="\n s \n"
    ),
    "separators": chat("\x1c\x1funit\x85", "\x0b\x0cfeed\u2028\x1e", "a\r\nb\rc", "\r\n"),
    "empty question": chat("", "answer"),
    "empty answer": chat("question", ""),
    "empty system": chat("question", "answer", system=""),
    "marks": chat("{{ x }} {% if %} <|im_end|> [INST] </s>", "<s>[/INST] & <b> 'single' \"double\" \\n {# c #}"),
    "thoughts": chat("2+2?", "<think>\nadd\n</think>\n\n4", "3+3?", "<think></think>6"),
    "code": chat("```python\n\tdef f():\n\t\treturn '%s' % {}\n```", "$ \\frac{1}{2} $\n- [ ] x\n"),
    "one letter": chat("x", "y", system="z"),
}
