"""Tokenizers of Llama 2, Code Llama, Mistral and DBRX in Hugging Face's files, made from what packages carry of them.

SentencePiece's models and llama.cpp's vocabularies store pieces with scores; `tokenizer.json` wants merges in order. They
follow from the scores, as in transformers' own conversion: every way to cut a piece in two pieces is a merge, the
best piece first. scripts/parity/templates.py holds what comes out against the tests that the packages carry.
"""

import ast
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# The types of a piece, the same in both formats.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BLANK = "▁"

# How Llama 2's chat models were trained to see a conversation (generation.py of Meta's repository `llama`).
LLAMA2_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set turns = messages[1:] %}
    {%- set opening = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{%- else %}
    {%- set turns = messages %}
    {%- set opening = '' %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- set content = opening + message['content'] if loop.first else message['content'] %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# The pieces that Code Llama's 7B and 13B have after Llama 2's 32,000. The marks of infilling are special; the others are
# steps on SentencePiece's way to them.
CODE_LLAMA_MARKS = {f"{BLANK}<PRE>": 32007, f"{BLANK}<SUF>": 32008, f"{BLANK}<MID>": 32009, f"{BLANK}<EOT>": 32010}
CODE_LLAMA_STEPS = ["<SU", "<SUF", "<PRE", "<M", "<MID", "<E", "<EOT"]
CODE_LLAMA_REPEATS = range(2, 7)

DBRX_ADDED = {"<|pad|>": 100277, "<|im_start|>": 100278, "<|im_end|>": 100279}

Files = Iterator[tuple[str, bytes]]


@dataclass
class Piece:
    """A row of a SentencePiece vocabulary."""

    text: str
    score: float
    kind: int


class Reader:
    """Little-endian values one after the other."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def take(self, count: int) -> bytes:
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self, form: str):
        (value,) = struct.unpack("<" + form, self.take(struct.calcsize(form)))
        return value

    def varint(self) -> int:
        value, shift = 0, 0
        while (byte := self.number("B")) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def text(self) -> str:
        """A string of GGUF."""
        return self.take(self.number("Q")).decode()

    @property
    def done(self) -> bool:
        return self.place >= len(self.content)


# GGUF's type numbers of single values.
GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_TEXT, GGUF_LIST = 8, 9


def gguf_value(reader: Reader, kind: int):
    if kind == GGUF_TEXT:
        return reader.text()
    if kind == GGUF_LIST:
        member, count = reader.number("I"), reader.number("Q")
        return [gguf_value(reader, member) for _ in range(count)]
    return reader.number(GGUF_NUMBERS[kind])


def gguf_pieces(content: bytes) -> list[Piece]:
    """The vocabulary in a .gguf file."""
    reader = Reader(content)
    _magic, _version, _tensors, fields = reader.take(4), reader.number("I"), reader.number("Q"), reader.number("Q")
    values = {}
    for _ in range(fields):
        key = reader.text()
        values[key] = gguf_value(reader, reader.number("I"))
    columns = (values[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    return [Piece(*row) for row in zip(*columns, strict=True)]


def protobuf_fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message: number, and the bytes or the whole number in it."""
    reader = Reader(content)
    while not reader.done:
        field, wire = divmod(reader.varint(), 8)
        match wire:
            case 0:
                yield field, reader.varint()
            case 1:
                yield field, reader.take(8)
            case 2:
                yield field, reader.take(reader.varint())
            case 5:
                yield field, reader.take(4)


def model_pieces(content: bytes) -> list[Piece]:
    """The vocabulary in SentencePiece's tokenizer.model (sentencepiece_model.proto)."""
    pieces = []
    for field, message in protobuf_fields(content):
        if field == 1:
            parts = dict(protobuf_fields(message))
            (score,) = struct.unpack("<f", parts[2])
            pieces.append(Piece(parts[1].decode(), score, parts.get(3, NORMAL)))
    return pieces


def merges_of(pieces: list[Piece]) -> list[list[str]]:
    """All ways to cut each piece in two pieces, by descending score."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    found = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                found.append((-score, -len(left), left, right))
    found.sort(key=lambda merge: merge[:2])
    return [[left, right] for _, _, left, right in found]


def added_token(id: int, text: str) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": text, **flags, "special": True}


def sentencepiece(pieces: list[Piece], legacy: bool) -> dict:
    """tokenizer.json of a vocabulary. `legacy`: a blank is put before every text between special tokens, as by the
    tokenizers of 2023, else only before the first."""
    first = {"type": "Prepend", "prepend": BLANK}
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    back = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
    start = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    metaspace = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "first", "split": False}
    begin, text, other = (
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        *({"Sequence": {"id": i, "type_id": 0}} for i in "AB"),
    )
    special = [
        added_token(id, piece.text) for id, piece in enumerate(pieces) if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [first, blanks]} if legacy else None,
        "pre_tokenizer": None if legacy else metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, begin, other],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, start]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: id for id, piece in enumerate(pieces)},
            "merges": merges_of(pieces),
        },
    }


def folder(tokenizer: dict | bytes, special: dict[str, str], template: str | bytes) -> Files:
    """The files of a tokenizer's folder."""
    yield (
        "tokenizer.json",
        tokenizer if isinstance(tokenizer, bytes) else json.dumps(tokenizer, ensure_ascii=False).encode(),
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    yield "tokenizer_config.json", json.dumps(config, indent=2).encode()
    yield "special_tokens_map.json", json.dumps(special, indent=2).encode()
    yield "chat_template.jinja", template if isinstance(template, bytes) else template.encode()


LLAMA_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def llama2(vocabulary: bytes) -> Files:
    """Llama 2 and Code Llama 34B, from llama.cpp's vocabulary."""
    yield from folder(sentencepiece(gguf_pieces(vocabulary), legacy=True), LLAMA_SPECIAL, LLAMA2_TEMPLATE)


def code_llama(vocabulary: bytes) -> Files:
    """Code Llama 7B and 13B: Llama 2 with the marks of infilling. The steps towards them get no merges, so that they occur
    in no text; SentencePiece would make them only of texts that spell a mark or the beginning of one."""
    tokenizer = sentencepiece(gguf_pieces(vocabulary), legacy=True)
    steps = [BLANK + step for step in CODE_LLAMA_STEPS]
    repeats = [BLANK + "<EOT>" * count for count in CODE_LLAMA_REPEATS]
    rows = {text: 32000 + row for row, text in enumerate([*steps, *CODE_LLAMA_MARKS, *repeats])}
    tokenizer["model"]["vocab"] |= rows
    tokenizer["added_tokens"] += [added_token(id, text) for text, id in CODE_LLAMA_MARKS.items()]
    yield from folder(tokenizer, LLAMA_SPECIAL, LLAMA2_TEMPLATE)


def mistral(model: bytes, template: bytes) -> Files:
    """Mistral and Mixtral, from SentencePiece's model in mistral-common."""
    yield from folder(sentencepiece(model_pieces(model), legacy=False), LLAMA_SPECIAL, template)


def dbrx(cl100k: bytes, wrapper: bytes, prompts: bytes) -> Files:
    """DBRX: cl100k with three tokens more. The template is LLM Foundry's, with the system prompt of DBRX in it."""
    tokenizer = json.loads(cl100k)
    tokenizer["added_tokens"] += [added_token(id, text) for text, id in DBRX_ADDED.items()]
    template = longest_text(wrapper, "default_chat_template")
    template = template.replace("USE_DEFAULT_PROMPT", "true").replace(
        "DEFAULT_SYSTEM_PROMPT", jinja_text(dbrx_prompt(prompts))
    )
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>") | {"pad_token": "<|pad|>"}
    yield from folder(tokenizer, special, template)


def longest_text(source: bytes, function: str) -> str:
    """The longest string in a function of a Python file, which is read and not run."""
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == function
    )
    return max(texts_in(next(functions)), key=len)


def dbrx_prompt(source: bytes) -> str:
    """The system prompt in LLaMA-Factory's description of DBRX's format."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {word.arg: word.value for word in node.keywords}
            if "name" in given and texts_in(given["name"]) == ["dbrx"]:
                return max(texts_in(given["default_system"]), key=len)
    raise ValueError("found no template called dbrx")


def texts_in(node: ast.AST) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def jinja_text(text: str) -> str:
    """Text as the inside of a Jinja literal in single quotes."""
    return text.replace("\\", "\\\\").replace("'", "\\'")
