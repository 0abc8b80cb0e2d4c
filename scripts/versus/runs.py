#!/usr/bin/env python3
"""What a run costs besides its steps, from runs of the release binary.

start    SmolLM2-135M-Instruct (fetched by scripts/fetch) on the conversations of the quickstart, 4 rows of 512 tokens: seconds from the
         start of the process to the beginning of the first step, with nothing tokenised yet, and with a warm cache, beside the time that
         reading the model's file takes (in memory already, as the model is).
stall    A model of 56 M parameters saves while it trains: how much longer the steps beside the save take, all together, against
         how long the save takes.
growth   A small model takes 300 steps from data for 1,000, 10,000 and 100,000 steps, in turn: milliseconds a token and peak memory;
         and 1,100 steps in one run: memory after 100 and near the end.
tracking A small model takes 1,000 steps, in turn with nobody told of them and with every one told to an MLflow server on this machine,
         for which a thread is left out: by how much the steps are longer, and what the threads beside them take. Installs the server (scripts/python-venv tracking).
sources  `tessera validate` on generated data, as .jsonl and as .parquet: its digest, its rules, and its tokens in a cache. Seconds and
         peak memory, all of the process. Takes twice as much of the disk.

  scripts/bench-run [PART ...] [--rounds 3] [--threads N] [--gigabytes 10]     without a part: start, stall and growth
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

from processes import ROOT, table

CONTEXT = 128
SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
LARGE = {
    **SMALL,
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


class Run:
    """A run of the binary under way, watched from outside."""

    def __init__(self, binary: str, threads: int, folder: Path, settings: dict, verb: str = "train") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        run_file = folder / "run.yaml"
        everything = {"run_name": "run", "save_folder": str(folder), "devices": "cpu", **settings}
        run_file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in everything.items()))
        self.folder, self.binary = folder / "run", binary
        self.began = time.time()
        self.log = tempfile.TemporaryFile("w+")
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        command = [binary, verb, str(run_file)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=environment)

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        if self.process.wait() != 0:
            self.log.seek(0)
            raise SystemExit(f"tessera ended with {self.process.returncode}:\n{self.log.read()[-3000:]}")

    def memory_by_step(self) -> dict[int, float]:
        """Waits for the end. Anonymous memory in MB, by the steps that were done when it was taken; files that are mapped, as
        tokenised data is, belong to the system's cache."""
        found: dict[int, float] = {}
        while self.process.poll() is None:
            time.sleep(0.02)
            try:
                done = (self.folder / "metrics.jsonl").read_bytes().count(b"\n")
            except FileNotFoundError:
                done = 0
            try:
                status = Path(f"/proc/{self.process.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for line in status.splitlines():
                if line.startswith("RssAnon"):
                    found[done] = max(int(line.split()[1]) / 1e3, found.get(done, 0.0))
        self.finish()
        return found

    def peak_memory(self) -> dict[str, float]:
        """Waits for the end. The most in MiB of what was resident: all, with files that are mapped, and anonymous memory."""
        peak = {"VmRSS": 0.0, "RssAnon": 0.0}
        while self.process.poll() is None:
            time.sleep(0.02)
            try:
                status = Path(f"/proc/{self.process.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for name, _, value in (line.partition(":") for line in status.splitlines()):
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]) / 1024)
        self.finish()
        return peak

    def time_beside(self) -> float:
        """Waits for the end. Seconds of the processor that threads took which do not compute: all with names of their own."""
        spent: dict[str, int] = {}
        while self.process.poll() is None:
            time.sleep(0.02)
            for thread in Path(f"/proc/{self.process.pid}/task").glob("*"):
                try:
                    if (thread / "comm").read_text().strip() != Path(self.binary).name:
                        spent[thread.name] = int((thread / "schedstat").read_text().split()[0])
                except (FileNotFoundError, ProcessLookupError):
                    continue
        self.finish()
        return sum(spent.values()) / 1e9

    def steps(self) -> list[float]:
        """Seconds of each step, with what it waited for a snapshot."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        elapsed = [3600 * line["time/train"] for line in lines if "time/train" in line]
        return [after - before for before, after in zip([0.0, *elapsed], elapsed)]

    def event(self, kind: str) -> float:
        """When the last event of a type happened, in seconds since 1970."""
        lines = map(json.loads, (self.folder / "events.jsonl").read_text().splitlines())
        times = [line["time"] for line in lines if line["type"] == kind]
        return datetime.fromisoformat(times[-1].replace("Z", "+00:00")).timestamp()


def write_model(folder: Path, config: dict) -> Path:
    """A config with random weights to come, and a tokenizer of whole words."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    words = {f"w{index}": index for index in range(config["vocab_size"])}
    end = config["vocab_size"] - 1
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": end, "content": f"w{end}", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": f"w{end}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_text(path: Path, tokens: int, vocabulary: int) -> Path:
    """Documents of 1,000 words."""
    source = random.Random(17)
    with path.open("w") as text:
        for _ in range(max(tokens // 1000, 1)):
            words = " ".join(f"w{source.randrange(vocabulary - 1)}" for _ in range(1000))
            text.write(json.dumps({"text": words}) + "\n")
    return path


def pretraining(model: Path, data: Path, steps: int, rows: int, context: int) -> dict:
    return {
        "model": str(model),
        "init": "random",
        "train_data_path": str(data),
        "task_type": "CONTINUED_PRETRAIN",
        "training_duration": f"{steps}ba",
        "context_length": context,
        "global_train_batch_size": rows,
        "device_train_microbatch_size": rows,
        "hf_save_interval": "1dur",
    }


def start(arguments: argparse.Namespace, folder: Path) -> None:
    model = subprocess.run(["scripts/fetch", "smollm2"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.strip()
    subprocess.run(["scripts/quickstart-data", folder / "data"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    data = next(path for path in sorted((folder / "data").rglob("*.jsonl")) if "train" in path.name)
    rows = []
    for name in ("nothing tokenised yet", *["warm cache"] * arguments.rounds):
        settings = {"model": model, "train_data_path": str(data), "training_duration": "1ba", "context_length": 512}
        settings |= {"global_train_batch_size": 4, "device_train_microbatch_size": 4, "save_weights_only": True}
        run = Run(arguments.binary, arguments.threads, folder, settings)
        run.finish()
        rows.append((name, run.event("TRAIN_STARTED") - run.began, run.steps()[0]))
        subprocess.run(["rm", "-rf", run.folder], check=True)
    began = time.perf_counter()
    size = len(Path(model).read_bytes())
    reading = time.perf_counter() - began
    warm = [seconds for name, seconds, _ in rows if name == "warm cache"]
    cold = rows[0][1]
    print(f"\nstart to the first step, SmolLM2-135M, load: {os.getloadavg()[1]:.1f}\n")
    cells = [["nothing tokenised yet", f"{cold:.2f}"], ["warm cache", f"{statistics.median(warm):.2f} ({min(warm):.2f}–{max(warm):.2f})"]]
    cells += [[f"reading the file of {size / 1e6:.0f} MB", f"{reading:.2f}"], ["the first step", f"{statistics.median(r[2] for r in rows):.2f}"]]
    print(table(["", "s"], cells))


def watch(run: Run, name: str, seen: dict[str, float]) -> None:
    """Notes when a save begins and when the checkpoint has its name."""
    checkpoints = run.folder / "checkpoints"
    while run.process.poll() is None and "end" not in seen:
        try:
            names = os.listdir(checkpoints)
        except FileNotFoundError:
            names = []
        if names:
            seen.setdefault("begin", time.time())
        if name in names:
            seen["end"] = time.time()
        time.sleep(0.002)


def stall(arguments: argparse.Namespace, folder: Path) -> None:
    model, data = write_model(folder / "model", LARGE), write_text(folder / "text.jsonl", 40_000, LARGE["vocab_size"])
    rows = []
    for number in range(arguments.rounds):
        settings = pretraining(model, data, 12, 4, 512) | {"save_interval": "6ba", "save_num_checkpoints_to_keep": 1}
        run = Run(arguments.binary, arguments.threads, folder / str(number), settings)
        seen: dict[str, float] = {}
        watcher = threading.Thread(target=watch, args=(run, "ep0-ba6", seen))
        watcher.start()
        run.process.wait()
        watcher.join()
        steps = run.steps()
        usual = statistics.median(steps[1:5])
        beside = [seconds - usual for seconds in steps[5:8]]
        rows.append((usual, seen["end"] - seen["begin"], sum(beside)))
        subprocess.run(["rm", "-rf", folder / str(number)], check=True)
    cells = [[str(n + 1), *(f"{v:.2f}" for v in row), f"{100 * row[2] / row[1]:.1f} %"] for n, row in enumerate(rows)]
    middle = statistics.median(row[2] / row[1] for row in rows)
    print(f"\na checkpoint beside steps of a model of 56 M parameters, load: {os.getloadavg()[1]:.1f}\n")
    print(table(["round", "a step, s", "save, s", "longer steps, s", "of the save"], cells))
    print(f"\nmedian: {100 * middle:.1f} %")


def growth(arguments: argparse.Namespace, folder: Path) -> None:
    model = write_model(folder / "model", SMALL)
    lengths = (1_000, 10_000, 100_000)
    files = {steps: write_text(folder / f"{steps}.jsonl", steps * 2 * CONTEXT, SMALL["vocab_size"]) for steps in lengths}
    found: dict[int, list[tuple[float, float]]] = {steps: [] for steps in lengths}
    for _ in range(arguments.rounds):
        for steps, data in files.items():
            run = Run(arguments.binary, arguments.threads, folder, pretraining(model, data, 300, 2, CONTEXT))
            peak = max(run.memory_by_step().values())
            found[steps].append((1e3 * statistics.median(run.steps()[20:]) / (2 * CONTEXT), peak))
            subprocess.run(["rm", "-rf", run.folder], check=True)
    base = statistics.median(time for time, _ in found[lengths[0]])
    cells = []
    for steps, runs in found.items():
        time_of, peak = statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)
        cells.append([f"data for {steps:,} steps", f"{1e3 * time_of:.2f}", f"{time_of / base:.2f}", f"{peak:.0f}"])
    print(f"\n300 steps of 2 rows of {CONTEXT} tokens, a small model, load: {os.getloadavg()[1]:.1f}\n")
    print(table(["", "µs a token", "ratio", "peak MB, anonymous"], cells))
    run = Run(arguments.binary, arguments.threads, folder, pretraining(model, files[10_000], 1100, 2, CONTEXT))
    memory = run.memory_by_step()
    early, late = (memory[min(memory, key=lambda step: abs(step - at))] for at in (100, 1090))
    print(f"\nanonymous memory in one run: {early:.1f} MB after 100 steps, {late:.1f} MB after 1,090")


def python_of_tracking() -> Path:
    """The interpreter beside the MLflow server, which has pyarrow too."""
    command = ["scripts/python-venv", "tracking"]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.strip()) / "bin/python"


def tracking(arguments: argparse.Namespace, folder: Path) -> None:
    sys.path.append(str(ROOT / "scripts/tracking"))
    from server import Server

    model, data = write_model(folder / "model", SMALL), write_text(folder / "text.jsonl", 1000 * 2 * CONTEXT, SMALL["vocab_size"])
    alone = pretraining(model, data, 1000, 2, CONTEXT)
    threads = arguments.threads - 1
    if threads < 1:
        raise SystemExit("tracking needs two threads, one of them for the server")
    rounds = []
    with Server(folder, python_of_tracking().with_name("mlflow")) as server:
        told = alone | {"experiment_path": "/cost", "mlflow": {"tracking_uri": server.address}}
        for _ in range(arguments.rounds):
            times = []
            for settings in (alone, told):
                run = Run(arguments.binary, threads, folder, settings)
                beside = run.time_beside() / 1000
                times += [statistics.mean(run.steps()[20:]), beside]
                subprocess.run(["rm", "-rf", run.folder], check=True)
            rounds.append(times)
    cells = [[str(n + 1), *(f"{1e3 * v:.3f}" for v in row)] for n, row in enumerate(rounds)]
    print(f"\n1,000 steps told to MLflow, {threads} of {arguments.threads} threads, load: {os.getloadavg()[1]:.1f}; ms a step, by the clock, and of\n"
          "the processor for threads that do not compute\n")
    print(table(["round", "alone", "beside it", "told", "beside it"], cells))
    shares = [(told - alone) / step for step, alone, _, told in rounds]
    ratios = [told / alone for alone, _, told, _ in rounds]
    print(f"\nmedians: {statistics.median(ratios):.3f} times the step by the clock; {100 * statistics.median(shares):.2f} % of it more beside it")


def sources(arguments: argparse.Namespace, folder: Path) -> None:
    python = python_of_tracking()
    settings = pretraining(write_model(folder / "model", SMALL), folder, 10, 2, CONTEXT) | {"task_type": "INSTRUCTION_FINETUNE"}
    cells = []
    for kind in ("jsonl", "parquet"):
        path = folder / f"pairs.{kind}"
        subprocess.run([python, "scripts/versus/pairs.py", path, str(arguments.gigabytes)], check=True, cwd=ROOT)
        size = path.stat().st_size
        run = Run(arguments.binary, arguments.threads, folder, settings | {"train_data_path": str(path)}, "validate")
        peak = run.peak_memory()
        seconds = time.time() - run.began
        figures = [f"{size / 1e9:.1f}", f"{seconds:.0f}", f"{size / 1e6 / seconds:.0f}", *(f"{value:.0f}" for value in peak.values())]
        cells.append([f".{kind}", *figures])
        path.unlink()
    print(f"\n`tessera validate`, with all of its tokens, on prompts with answers of 20 KB, {arguments.threads} threads, load: {os.getloadavg()[1]:.1f}\n")
    print(table(["", "GB", "s", "MB/s", "peak RSS, MiB", "of it anonymous"], cells))


def main() -> None:
    parts = {part.__name__: part for part in (start, stall, growth, tracking, sources)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--binary", default=str(ROOT / "target/release/tessera"))
    arguments = parser.parse_args()
    if set(arguments.parts) - parts.keys() or arguments.rounds < 1:
        parser.error(f"parts are {', '.join(parts)}; at least 1 round is needed")
    for name in arguments.parts or ("start", "stall", "growth"):
        with tempfile.TemporaryDirectory() as temporary:
            parts[name](arguments, Path(temporary))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
