"""Each family's real tokenizer: the tokens of texts against the tests and models that packages carry, and the tokens and
the loss mask of conversations against Hugging Face's tokenizers on the whole text.
"""

import base64
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import tiktoken
from tokenizers import Tokenizer

import templates_llama_cpp as llama_cpp
import tessera
from templates_conversations import CONVERSATIONS
from templates_inspect import Document, byte_alphabet, inspect, inspect_texts, write_model
from templates_reference import Refusal, Template, Turns
from templates_tally import Tally

sys.path.insert(0, str(tessera.ROOT / "scripts"))
import derive_tokenizers as derive

SEPARATOR = "\n__ggml_vocab_test__\n"
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
BYTE_OF = {character: byte for byte, character in enumerate(byte_alphabet())}


@dataclass
class Family:
    """A tokenizer with its template."""

    name: str
    tokenizer_json: str
    config: dict
    template: str

    def __post_init__(self):
        self.tokenizer = Tokenizer.from_str(self.tokenizer_json)
        self.added = {id: token.content for id, token in self.tokenizer.get_added_tokens_decoder().items()}
        files = json.loads(self.tokenizer_json)
        self.is_sentencepiece = files["model"]["byte_fallback"]
        # Whether a blank is put before each text between special tokens.
        self.is_legacy = self.is_sentencepiece and files["normalizer"] is not None
        self.special = {name: self.config[name] for name in SPECIAL_NAMES if isinstance(self.config.get(name), str)}
        self.eos = self.tokenizer.token_to_id(self.special["eos_token"])
        self.prefix = self.tokenizer.encode("", add_special_tokens=True).ids

    def write(self, folder: Path) -> Path:
        write_model(folder, self.tokenizer_json, self.config, self.template)
        return folder

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in one piece."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def spelt(self, response: str) -> str:
        """What the tokens of a response are to stand for: itself, with blanks after special tokens that it spells."""
        marks = "|".join(map(re.escape, self.added.values()))
        return re.sub(f"({marks})(?!{marks}|$)", r"\1 ", response) if self.is_legacy else response

    def text(self, ids: list[int]) -> str:
        """What tokens stand for, the blank before a text included, which decoders take away."""
        return b"".join(map(self.bytes_of, ids)).decode(errors="backslashreplace")

    def bytes_of(self, id: int) -> bytes:
        if id in self.added:
            return self.added[id].encode()
        piece = self.tokenizer.id_to_token(id)
        if not self.is_sentencepiece:
            return bytes(BYTE_OF[character] for character in piece)
        if found := BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace(derive.BLANK, " ").encode()

    def closed(self, ids: list[int]) -> list[int]:
        """Tokens with the EOS that ends an example or document, once."""
        return ids if ids[-1:] == [self.eos] else [*ids, self.eos]


def families(fetched: Callable[[str], Path]) -> list[Family]:
    """All tokenizers with the templates they are used with."""
    named = {
        "Llama 2, Code Llama 34B": "llama2-tokenizer",
        "Code Llama": "code-llama-tokenizer",
        "Llama 3": "llama3-tokenizer",
        "Mistral v1, Mixtral": "mistral-v1-tokenizer",
        "Mistral v3": "mistral-v3-tokenizer",
        "DBRX": "dbrx-tokenizer",
    }
    found = []
    for name, folder in ((name, fetched(input)) for name, input in named.items()):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        file = folder / "chat_template.jinja"
        template = file.read_text() if file.exists() else config["chat_template"]
        found.append(Family(name, (folder / "tokenizer.json").read_text(), config, template))
    llama3 = next(family for family in found if family.name == "Llama 3")
    for model in ("Llama-3.1-8B", "Llama-3.2-3B", "Llama-3.3-70B"):
        template = (fetched("llama-cpp-templates") / f"meta-llama-{model}-Instruct.jinja").read_text()
        found.append(Family(model, llama3.tokenizer_json, llama3.config, template))
    pieces = derive.model_pieces((fetched("mistral-models") / "tokenizer.model.v1").read_bytes())
    legacy = json.dumps(derive.sentencepiece(pieces, legacy=True))
    cases = llama_cpp.cases(fetched("llama-cpp-tests") / "test-chat-template.cpp")
    template = next(case.template for case in cases if "Old pre-v1" in case.name)
    found.append(Family("Mistral v1 of 2023", legacy, derive.LLAMA_SPECIAL, template))
    return found


def compare_mask(family: Family, turns: Turns, found: Document) -> tuple[str, str | None]:
    """Tokens and mask of one conversation. What is learnt must be the responses, to the character. The tokens must be
    those of the whole text; where one of those lies over the border of the mask, those of the text up to there."""
    learnt, place = [], 0
    while place < len(found.ids):
        end = next((i for i in range(place, len(found.ids)) if found.loss[i] != found.loss[place]), len(found.ids))
        if found.loss[place]:
            learnt.append(found.ids[place:end])
        place = end
    responses = [family.spelt(turns.text[start:end]) for start, end in turns.responses()]
    texts = [family.text(ids) for ids in learnt]
    if texts[-1:] == [responses[-1] + family.special["eos_token"]]:
        responses[-1] = texts[-1]
    if texts != responses:
        return "", f"learnt {texts}, expected {responses}"
    whole = family.tokenizer.encode(turns.text, add_special_tokens=False)
    if found.ids == family.closed(whole.ids):
        return "equal", None
    over = any(start < border < end for border in turns.ends for start, end in whole.offsets)
    first = found.loss.index(True)
    if over and found.ids[:first] == family.encode(turns.text[: turns.ends[0]]):
        return "equal but for tokens over a border", None
    return "", f"{found.ids} is not {family.closed(whole.ids)} of {turns.text!r}"


def compare_conversations(family: Family, folder: Path, tally: Tally) -> None:
    """Tokens and masks of all conversations."""
    template = Template(family.template, family.special)
    found = inspect(family.write(folder), list(CONVERSATIONS.values()))
    for (title, messages), ours in zip(CONVERSATIONS.items(), found, strict=True):
        turns = template.turns(messages)
        if isinstance(turns, Refusal):
            agrees = isinstance(ours, str) and turns.reason in ours
            tally.add("refused by both", None if agrees else f"{turns}, ours: {ours!r}", family.name, title)
        elif isinstance(ours, Document):
            tally.add(*compare_mask(family, turns, ours), family.name, title)
        else:
            tally.add("", f"not refused by Jinja2, ours: {ours!r}", family.name, title)


def compare_texts(
    family: Family, folder: Path, texts: list[str], expected: list[list[int]], against: str, tally: Tally
) -> None:
    """Documents of continued pre-training: BOS where the tokenizer adds it, the text's tokens, EOS."""
    pairs = [(text, ids) for text, ids in zip(texts, expected, strict=True) if text]
    found = inspect_texts(family.write(folder), [text for text, _ in pairs])
    for (text, ids), ours in zip(pairs, found, strict=True):
        wanted = family.closed([*family.prefix, *ids])
        place = next((i for i, (a, b) in enumerate(zip(ours, wanted)) if a != b), min(len(ours), len(wanted)))
        difference = f"{text[:60]!r} at token {place}: {ours[place : place + 9]} is not {wanted[place : place + 9]}"
        tally.add("equal", None if ours == wanted else difference, family.name, against)


def test_texts(fetched: Callable[[str], Path], vocabulary: str) -> tuple[list[str], list[list[int]]]:
    """llama.cpp's texts with their tokens."""
    base = fetched("llama-cpp-tests") / f"ggml-vocab-{vocabulary}.gguf"
    texts = base.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = base.with_suffix(".gguf.out").read_text().splitlines()
    return texts[: len(lines)], [[int(id) for id in line.split()] for line in lines]


def cl100k(table: Path) -> tiktoken.Encoding:
    """tiktoken's own encoder. The table holds base64 tokens after the rank of the first, a line a block."""
    content = json.loads(table.read_text())
    ranks = {}
    for line in content["bpe_ranks"].splitlines():
        _, first, *tokens = line.split()
        ranks |= {base64.b64decode(token): int(first) + place for place, token in enumerate(tokens)}
    return tiktoken.Encoding("cl100k", pat_str=content["pat_str"], mergeable_ranks=ranks, special_tokens={})


def mistral_conversation(version: int, model: sentencepiece.SentencePieceProcessor, messages: list[dict]) -> list[int]:
    """Tokens as mistral-common's instruct tokenizers v1 and v3 put them together: each message by itself."""
    ids = [model.bos_id()]
    for message in messages:
        if message["role"] == "assistant":
            ids += [*model.encode(message["content"]), model.eos_id()]
        elif version == 1:
            ids += model.encode(f"[INST] {message['content']} [/INST]")
        else:
            ids += [model.piece_to_id("[INST]"), *model.encode(message["content"]), model.piece_to_id("[/INST]")]
    return ids


def compare_mistral(
    family: Family, version: int, model_file: Path, folder: Path, texts: list[str], tally: Tally
) -> None:
    """Texts and plain conversations against SentencePiece on Mistral's own model. Before a blank, transformers' tokenizers
    put no second one, as SentencePiece does; texts that begin so are left out."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    texts = [text for text in texts if not text.startswith(" ")]
    compare_texts(family, folder / "texts", texts, [model.encode(text) for text in texts], "SentencePiece", tally)
    plain = [CONVERSATIONS[title] for title in ("one turn", "three turns", "thoughts")]
    for messages, ours in zip(plain, inspect(family.write(folder / "chat"), plain), strict=True):
        wanted = mistral_conversation(version, model, messages)
        ids = ours.ids if isinstance(ours, Document) else ours
        tally.add(
            "equal", None if ids == wanted else f"{ids} is not {wanted}", family.name, "mistral-common's conversation"
        )


def compare_all(folder: Path, fetched: Callable[[str], Path]) -> bool:
    """Texts, long texts and conversations of all families."""
    known = {family.name: family for family in families(fetched)}
    texts, long_texts, masks = Tally(), Tally(), Tally()
    spm_texts, spm_ids = test_texts(fetched, "llama-spm")
    bpe_texts, bpe_ids = test_texts(fetched, "llama-bpe")
    for name, vocabulary in (
        ("Llama 2, Code Llama 34B", (spm_texts, spm_ids)),
        ("Code Llama", (spm_texts, spm_ids)),
        ("Llama 3", (bpe_texts, bpe_ids)),
    ):
        compare_texts(known[name], folder / f"texts of {name}", *vocabulary, "llama.cpp", texts)
    models = fetched("mistral-models")
    compare_mistral(
        known["Mistral v1, Mixtral"], 1, models / "tokenizer.model.v1", folder / "mistral1", spm_texts, texts
    )
    compare_mistral(
        known["Mistral v3"],
        3,
        models / "mistral_instruct_tokenizer_240323.model.v3",
        folder / "mistral3",
        spm_texts,
        texts,
    )
    encoder = cl100k(fetched("cl100k-ranks"))
    compare_texts(
        known["DBRX"],
        folder / "dbrx",
        bpe_texts,
        [encoder.encode_ordinary(text) for text in bpe_texts],
        "tiktoken",
        texts,
    )
    plays = sorted(fetched("shakespeare").iterdir())
    long_text = "".join(file.read_text(errors="replace") for file in plays[:6])
    for number, family in enumerate(known.values()):
        compare_conversations(family, folder / f"chat-{number}", masks)
        if not family.name.startswith("Llama-3"):
            compare_texts(
                family, folder / f"long-{number}", [long_text], [family.encode(long_text)], "whole", long_texts
            )
    good = texts.report("texts and conversations, against llama.cpp's tests, SentencePiece and tiktoken")
    good &= long_texts.report(f"a text of {len(long_text):,} characters tokenised in parts, against the whole")
    return masks.report("conversations with each family's tokenizer, against the tokens of the whole text") and good
