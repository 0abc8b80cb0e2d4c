"""What `tessera inspect` makes of conversations: the tokens of each with the loss mask, or why it is refused.

The model folder is made here: a config that `init: random` is content with, and the tokenizer and chat template that a
comparison is about. With `bytes_tokenizer`, one token a byte, the texts that the template gives can be read off the
tokens exactly, and the mask off the bytes.
"""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import tessera

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 1 << 17,
    "tie_word_embeddings": True,
}
CONTEXT = 1 << 16
# Templates print this day where they ask for one.
DAY = "2026-11-20"
REFUSED = re.compile(r"^  line (\d+): (.*(?:\n(?!  (?:line \d+|…)).*)*)", re.MULTILINE)


@dataclass
class Document:
    """One conversation as the model sees it."""

    ids: list[int]
    # Whether each token is learnt.
    loss: list[bool]


def byte_alphabet() -> list[str]:
    """The characters by which byte-level tokenizers write the bytes 0 to 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    written = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [written[byte] for byte in range(256)]


def bytes_tokenizer(special: list[str]) -> Tokenizer:
    """A token's id is its byte; special tokens follow from 256."""
    tokenizer = Tokenizer(
        models.BPE(vocab={character: byte for byte, character in enumerate(byte_alphabet())}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def text_of_bytes(ids: list[int], special: list[str]) -> str:
    """The text of a byte tokenizer's tokens."""
    return b"".join(bytes([id]) if id < 256 else special[id - 256].encode() for id in ids).decode()


def write_model(folder: Path, tokenizer: str, config: dict, template: str | None) -> None:
    """A model folder: `tokenizer` is the text of tokenizer.json, `config` becomes tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Tokenizer.from_str(tokenizer).get_vocab()
    rows = max(vocabulary.values()) + 1
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": rows}))
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_bytes(template.encode())


def inspect(model: Path, conversations: list[list[dict]]) -> list[Document | str | None]:
    """Each conversation's document, the reason why it is refused, or None where it was dropped for an empty text."""
    found: list[Document | str | None] = [None] * len(conversations)
    left = list(range(len(conversations)))
    while left:
        ran = run_inspect(model, [conversations[index] for index in left])
        if ran.returncode == 0:
            for row in json.loads(ran.stdout):
                (document,) = row["documents"]
                tokens = document["tokens"]
                ids, loss = [token["id"] for token in tokens], [token["loss"] for token in tokens]
                found[left[document["origin"] - 1]] = Document(ids, loss)
            break
        refused = {int(line) - 1: reason for line, reason in REFUSED.findall(ran.stderr)}
        if not refused:
            if "none of the" in ran.stderr and "have an empty text" in ran.stderr:
                break
            return [f"tessera inspect ended with {ran.returncode}: {ran.stderr.strip()}"] * len(conversations)
        for place, reason in refused.items():
            found[left[place]] = reason
        left = [index for place, index in enumerate(left) if place not in refused]
    return found


def run_inspect(model: Path, conversations: list[list[dict]]) -> subprocess.CompletedProcess:
    """All conversations in one batch, a row each, in their order."""
    data = model / "data.jsonl"
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return run(model, data, "CHAT_COMPLETION", rows=len(conversations))


def inspect_texts(model: Path, texts: list[str]) -> list[list[int]]:
    """The tokens of each text as a document of continued pre-training."""
    data = model / "texts"
    data.mkdir()
    for number, text in enumerate(texts):
        (data / f"{number:04}.txt").write_bytes(text.encode())
    ran = run(model, data, "CONTINUED_PRETRAIN", rows=len(texts) + sum(map(len, texts)) // CONTEXT)
    if ran.returncode != 0:
        raise SystemExit(f"tessera inspect {model} ended with {ran.returncode}: {ran.stderr}")
    found: list[list[int]] = [[] for _ in texts]
    for row in json.loads(ran.stdout):
        (document,) = row["documents"]
        found[document["origin"] - 1] += [token["id"] for token in document["tokens"]]
    return found


def run(model: Path, data: Path, task: str, rows: int) -> subprocess.CompletedProcess:
    """Inspects a batch of that many rows, in the order of the data and not packed."""
    settings = {
        "model": str(model),
        "init": "random",
        "train_data_path": str(data),
        "task_type": task,
        "context_length": CONTEXT,
        "global_train_batch_size": rows,
        "device_train_microbatch_size": 1,
        "packing": "none",
        "shuffle": False,
        "devices": "cpu",
        "template_date": DAY,
        "save_folder": str(model / "runs"),
    }
    run_file = model / "run.yaml"
    run_file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    command = [tessera.BINARY, "inspect", run_file, "--batch", "0", "--json"]
    return subprocess.run(command, capture_output=True, text=True)
