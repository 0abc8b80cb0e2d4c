"""Runs the built `tessera` binary and reads what it left, for the comparisons with transformers."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TESSERA_BINARY", ROOT / "target/release/tessera"))


class RunFailed(Exception):
    """A run of the binary that did not come to its end, with the end of what it printed."""


def train(run_file: Path, settings: dict) -> Path:
    """Writes the run file, trains, and returns the run's folder."""
    run_file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    ran = subprocess.run([BINARY, "train", run_file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode != 0:
        raise RunFailed(f"tessera train {run_file} ended with {ran.returncode}:\n{ran.stdout[-3000:]}")
    return Path(settings["save_folder"]) / settings["run_name"]


def logits(model: Path, prompt: str, count: int, context: int) -> list[dict]:
    """The `count` largest logits after a prompt that is taken as plain text: id, text, logit."""
    command = [BINARY, "generate", model, "--task", "CONTINUED_PRETRAIN", "--context-length", str(context)]
    command += ["--prompt", prompt, "--top-logits", str(count), "--json"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(ran.stdout)[0]["next_tokens"]


def metrics(run_folder: Path, name: str) -> list[float]:
    """The values of one metric in the order they were logged."""
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


def export_folder(run_folder: Path) -> Path:
    """The newest Hugging Face export."""
    exports = [folder for folder in (run_folder / "huggingface").iterdir() if folder.name.startswith("ba")]
    return max(exports, key=lambda folder: int(folder.name.removeprefix("ba")))


def report(what: str, difference: float, limit: float) -> bool:
    """Prints one comparison; true where it holds."""
    holds = difference <= limit
    print(f"{'ok  ' if holds else 'FAIL'} {what}: {difference:.1e} (limit {limit:.0e})")
    return holds


def holds(what: str, problem: str) -> bool:
    """Prints whether there is no problem."""
    print(f"{'FAIL' if problem else 'ok  '} {what}{': ' + problem if problem else ''}")
    return not problem
