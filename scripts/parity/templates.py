#!/usr/bin/env python3
"""Renders every chat template of llama.cpp's and axolotl's collections with `tessera inspect` and compares, to the
character, the texts and the borders of the loss mask with Jinja2's as transformers sets it up, and with the texts
that llama.cpp's own tests expect. Then compares tokens and masks of each family's real tokenizer.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import templates_features as features
import templates_llama_cpp as llama_cpp
import templates_tokens as tokens
import tessera
from templates_conversations import CONVERSATIONS, TWO_TURNS
from templates_inspect import Document, bytes_tokenizer, inspect, text_of_bytes, write_model
from templates_reference import Refusal, Template, Turns
from templates_tally import Tally

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# What Jinja2 says where a template goes through tools or functions that it was not given.
NOTHING_TO_ITERATE = "TypeError: 'NoneType' object is not iterable"


def fetched(name: str) -> Path:
    """What scripts/fetch prints."""
    command = [tessera.ROOT / "scripts/fetch", name]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def turns_of(document: Document, special: list[str]) -> Turns:
    """The text of a byte tokenizer's document, and the borders of its mask in it."""
    ids, loss = document.ids, document.loss
    borders = [place for place in range(1, len(ids)) if loss[place] != loss[place - 1]]
    ends = [len(text_of_bytes(ids[:border], special)) for border in [*borders, len(ids)]]
    return Turns(text_of_bytes(ids, special), ends)


def compare(
    expected: Turns | Refusal, found: Document | str | None, special: list[str], eos: str
) -> tuple[str, str | None]:
    """The kind of agreement, and the difference where there is none."""
    if isinstance(expected, Refusal):
        if expected.reason == NOTHING_TO_ITERATE:
            return "Jinja2 fails on iterating over none, which is empty here", None
        reason = expected.reason if expected.raised else "the chat template fails on this conversation"
        if isinstance(found, str) and reason in found:
            return "refused by both", None
        return "", f"Jinja2: {expected}, ours: {found!r}"
    if found is None and 0 in [end - start for start, end in zip([0, *expected.ends], expected.ends)]:
        return "dropped for an empty text", None
    if not isinstance(found, Document):
        return "", f"Jinja2 renders it, ours: {found!r}"
    ours = turns_of(found, special)
    # An example ends with EOS, once.
    closed = (
        expected
        if expected.text.endswith(eos)
        else Turns(expected.text + eos, [*expected.ends[:-1], len(expected.text + eos)])
    )
    return ("equal", None) if ours == closed else ("", f"\n    Jinja2: {closed}\n    ours:   {ours}")


def compare_template(folder: Path, name: str, source: str, conversations: dict, tally: Tally) -> None:
    """Renders conversations with one template."""
    special = list(SPECIAL.values())
    write_model(folder, bytes_tokenizer(special).to_str(), SPECIAL, source)
    template = Template(source, SPECIAL)
    found = inspect(folder, list(conversations.values()))
    for (title, messages), ours in zip(conversations.items(), found, strict=True):
        agreement, difference = compare(template.turns(messages), ours, special, SPECIAL["eos_token"])
        tally.add(agreement, difference, name, title)


def compare_generation(name: str, source: str, tally: Tally) -> None:
    """Holds the {% generation %} blocks of a template against the responses by string prefixes: what only one of the two
    has must be the same words in every turn."""
    template = Template(source, SPECIAL)
    for title, messages in CONVERSATIONS.items():
        turns = template.turns(messages)
        if isinstance(turns, Refusal):
            continue
        spans, responses = template.generation_spans(messages), turns.responses()
        differences = {
            marked_beside(turns.text, response, span) for response, span in zip(responses, spans, strict=True)
        }
        if len(differences) == 1:
            tally.add(differences.pop(), None, name, title)
        else:
            tally.add("", f"marked {spans}, responses {responses} of {turns.text!r}", name, title)


def marked_beside(text: str, response: tuple[int, int], span: tuple[int, int]) -> str:
    """How marked words lie to the response: what only one of the two has."""
    (start, end), (first, last) = response, span
    outside = f"response and {text[first:start]!r} of the generation prompt" if first < start else "response"
    if first > start:
        outside += f" without {text[start:first]!r} before"
    if last != end:
        outside += f" up to {text[last:end]!r}"
    return f"marked: the {outside}"


def collections() -> list[tuple[str, str]]:
    """Names and texts of all templates."""
    files = [
        file for folder in ("axolotl-templates", "llama-cpp-templates") for file in sorted(fetched(folder).iterdir())
    ]
    return [(file.stem, file.read_text()) for file in files]


def compare_expected(folder: Path, case: llama_cpp.Case, tally: Tally) -> None:
    """Holds the text up to a last answer against what llama.cpp expects. Where a template refuses or leaves out the
    system message, llama.cpp puts it before the first user message; so is done here."""
    special = {
        "bos_token": case.bos_token or "〈bos〉",
        "eos_token": case.eos_token or "〈eos〉",
        "pad_token": "〈end〉",
    }
    write_model(folder, bytes_tokenizer(list(special.values())).to_str(), special, case.template)
    answer = [{"role": "assistant", "content": "answer"}]
    system, first, *rest = llama_cpp.CONVERSATION + case.more
    merged = {"role": "user", "content": f"{system['content']}\n{first['content']}"}
    questions = [[system, first, *rest], [merged, *rest]]
    texts = []
    for found in inspect(folder, [[*question, *answer] for question in questions]):
        turns = turns_of(found, list(special.values())) if isinstance(found, Document) else None
        text = turns.text[: turns.ends[-2]] if turns else str(found)
        # llama.cpp's cases have empty texts for tokens that the template may well print.
        texts.append(text.replace("〈bos〉", "").replace("〈eos〉", ""))
    if case.expected in texts:
        agreement = ["equal", "equal with the system message in the first user message"][texts.index(case.expected)]
        tally.add(agreement, None, case.name)
    elif case.more and "has the role" in texts[0]:
        tally.add("not compared, roles of tools", None, case.name)
    elif not case.supported:
        tally.add("not compared, needs a variable that transformers does not give", None, case.name)
    elif "no loss mask can be placed" in texts[0]:
        tally.add("refused, a loss mask cannot be placed", None, case.name)
    else:
        tally.add("", f"\n    expected: {case.expected!r}\n    ours:     {texts!r}", case.name)


def compare_features(folder: Path) -> tuple[Tally, Tally]:
    """The pieces that both engines render, and those that ours refuses."""
    rendered, refused = Tally(), Tally()
    conversations = {"two turns": TWO_TURNS}
    special = list(SPECIAL.values())
    for number, piece in enumerate(features.PIECES + features.REFUSED):
        compare_template(folder / str(number), piece, features.SAID + piece + features.TURNS, conversations, rendered)
    for number, piece in enumerate(features.OUT_OF_REACH):
        model = folder / f"out-{number}"
        write_model(model, bytes_tokenizer(special).to_str(), SPECIAL, piece + features.TURNS)
        (found,) = inspect(model, [TWO_TURNS])
        fails = isinstance(found, str) and "the chat template fails on this conversation" in found
        refused.add("refused by ours alone", None if fails else f"not refused: {found}", piece)
    return rendered, refused


def main() -> int:
    templates = collections()
    cases = llama_cpp.cases(fetched("llama-cpp-tests") / "test-chat-template.cpp")
    expected, texts, marked = Tally(), Tally(), Tally()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, case in enumerate(cases):
            compare_expected(folder / f"case-{number}", case, expected)
        templates += [(case.name, case.template) for case in cases]
        for number, (name, source) in enumerate(templates):
            compare_template(folder / f"template-{number}", name, source, CONVERSATIONS, texts)
            if "endgeneration" in source:
                compare_generation(name, source, marked)
        rendered, refused = compare_features(folder / "features")
        good = expected.report(f"{len(cases)} cases of llama.cpp's tests")
        good &= texts.report(f"{len(templates)} chat templates x {len(CONVERSATIONS)} conversations, against Jinja2")
        good &= marked.report("templates that mark the assistant's words, against transformers' mask")
        good &= rendered.report(f"{len(features.PIECES + features.REFUSED)} pieces of Jinja and Python, against Jinja2")
        good &= refused.report("pieces that Jinja2 renders and ours refuses by name")
        good &= tokens.compare_all(folder / "tokens", fetched)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
