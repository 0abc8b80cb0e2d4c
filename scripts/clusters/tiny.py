"""A folder with a tiny random model, a few conversations and a run file, and what runs in it leave behind. Needs nothing but
Python and the binary that TESSERA_BINARY names.
"""

import array
import json
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ["TESSERA_BINARY"]
# How long ranks wait for one another in these runs, and how much longer than that a run may take to end.
DEADLINE = 3
SLACK = 5

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 288,
}
RUN = {
    "model": "model",
    "init": "random",
    "train_data_path": "train.jsonl",
    "learning_rate": 1e-2,
    "context_length": 64,
    "global_train_batch_size": 16,
    "packing": "none",
    "dist_timeout": DEADLINE,
    "dist_startup_timeout": 30,
}
# What depends on the clock, or on how many ranks a process has.
VARYING = ("throughput/", "time/train", "time/remaining_estimate", "memory/")


class Wrong(Exception):
    """Something that must hold does not."""


def expect(holds: bool, message: str) -> None:
    if not holds:
        raise Wrong(message)


def conversation(index: int) -> str:
    first, second = index % 10, index // 10 % 10
    turns = [("user", f"{first} + {second}?"), ("assistant", f"{first + second}." + " yes" * (second % 4))]
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n"


class Folder:
    """A folder to run in."""

    def __init__(self, model: dict | None = None):
        # Resolved, because processes are found by the folder they work in.
        self.path = Path(tempfile.mkdtemp(prefix="tessera-")).resolve()
        self.write_inputs(self.path, model or {})

    def write_inputs(self, place: Path, model: dict) -> None:
        """The model's folder, the data and `run.yaml`, which may lie in another place for each rank."""
        (place / "model").mkdir(parents=True)
        (place / "model/config.json").write_text(json.dumps(MODEL | model))
        shutil.copy(ROOT / "crates/data/tests/fixtures/tokenizer.json", place / "model")
        (place / "model/tokenizer_config.json").write_text('{"bos_token": "<|begin|>", "eos_token": "<|end|>"}')
        (place / "train.jsonl").write_text("".join(map(conversation, range(96))))
        (place / "run.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in RUN.items()))

    def remove(self) -> None:
        shutil.rmtree(self.path)

    def run(self, name: str) -> Path:
        return self.path / "runs" / name

    def train(self, name: str, *overrides: str) -> None:
        """Trains in one process, to the end."""
        self.tessera("train", "run.yaml", f"run_name={name}", *overrides)

    def tessera(self, *arguments: str | Path, **environment: str) -> str:
        """What a command of the binary prints, which must succeed."""
        environment = os.environ | environment
        ran = subprocess.run([BINARY, *arguments], cwd=self.path, env=environment, capture_output=True, text=True, check=False)
        expect(ran.returncode == 0, f"tessera {arguments} ended with {ran.returncode}: {ran.stdout[-1000:]}{ran.stderr[-2000:]}")
        return ran.stdout

    def numbers(self, name: str) -> list[dict]:
        """The lines of a run's metrics, each without what may vary."""
        path = self.run(name) / "metrics.jsonl"
        # The last line of a run that works may still be on its way.
        text = path.read_text().rpartition("\n")[0] if path.exists() else ""
        lines = map(json.loads, text.splitlines())
        return [{key: value for key, value in line.items() if not key.startswith(VARYING)} for line in lines]

    def weights(self, name: str) -> bytes:
        """A finished run's exported weights."""
        exports = (self.run(name) / "huggingface").glob("ba*")
        newest = max(exports, key=lambda folder: int(folder.name.removeprefix("ba")))
        return (newest / "model.safetensors").read_bytes()

    def same_run(self, name: str, expected: str) -> None:
        """Checks that two runs had the same numbers and ended with the same weights, bit for bit."""
        found, wanted = self.numbers(name), self.numbers(expected)
        expect(len(found) == len(wanted), f"{name} has {len(found)} lines of metrics, {expected} {len(wanted)}")
        for one, other in zip(found, wanted):
            expect(one == other, f"{name}: {one}\n{expected}: {other}")
        expect(self.weights(name) == self.weights(expected), f"the weights of {name} are not those of {expected}")

    def same_as_threads(self, name: str, ranks: int, *overrides: str) -> None:
        """Checks that a finished run has the numbers and the weights of as many ranks in one process, bit for bit."""
        threads = f"threads-{name}"
        self.train(threads, *overrides, f"devices=cpu:{ranks}")
        self.same_run(name, threads)

    def close_run(self, name: str, expected: str, limit: float) -> None:
        """Checks that losses and final weights of two runs differ by rounding alone."""
        loss = "loss/train/total"
        pairs = zip(self.numbers(name), self.numbers(expected), strict=True)
        worst = max(abs(one[loss] / other[loss] - 1) for one, other in pairs)
        expect(worst < limit, f"{name}: a loss is off by {worst:.1e}")
        found, wanted = floats(self.weights(name)), floats(self.weights(expected))
        error = math.dist(found, wanted) / math.hypot(*wanted)
        expect(error < limit, f"{name}: weights are off by {error:.1e}")

    def whole_checkpoints(self, name: str) -> list[str]:
        """The names of the checkpoints that can be seen; each must be whole."""
        folders = sorted((self.run(name) / "checkpoints").glob("ep*"))
        for folder in folders:
            self.tessera("checkpoint", "verify", folder)
            others = [path.name for path in folder.iterdir() if path.name != ".metadata" and path.suffix != ".distcp"]
            expect(not others, f"{folder} holds {others}")
        return [folder.name for folder in folders]


def floats(tensors: bytes) -> array.array:
    """All values of a file of fp32 tensors; they lie behind a header whose length comes first."""
    return array.array("f", tensors[8 + int.from_bytes(tensors[:8], "little") :])
