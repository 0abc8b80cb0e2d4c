#!/usr/bin/env python3
"""A whole training step in PyTorch (transformers) beside ours: tokens/s, peak memory, and their ratios.

A Llama of 56 M parameters (vocabulary 32000, hidden 512, 8 layers, 8 heads of which 4 for keys and values,
feed-forward 1376, untied head), 4 rows of 512 tokens a step, AdamW, on the CPU, in fp32 and in mixed
precision: torch's bf16 autocast, and our `precision: amp_bf16`. All contenders read the same model.safetensors and the same tokens: a made-up text of words w0 … w31999, one token each. So the
losses must agree too, and that is printed.

Each contender runs in a process of its own, in rounds one after the other; the figures are medians over
the rounds. Tokens/s leaves out a run's first step, as our own log does. Peak memory is the process's peak
resident set. "torch eager" is what a fresh install does; "torch tuned" adds the fused AdamW, oneDNN
products (float32 matmul precision 'medium') and an allocator that keeps its memory. "bf16" is the same
under autocast.

  scripts/bench-vs-torch [--rounds 3] [--steps 6] [--threads N]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS, CONTEXT, VOCABULARY = 4, 512, 32000
LEARNING_RATE = 1e-3
END = VOCABULARY - 1
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": END,
}
# glibc's allocator otherwise gives large blocks back to the system after each operator.
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"


def tokens(steps: int) -> list[int]:
    """The text's token ids, without the end token that closes the document. Low ids are frequent, so that
    there is something to learn and the losses move."""
    source = random.Random(17)
    return [int(END * source.random() ** 4) for _ in range(steps * ROWS * CONTEXT - 1)]


def make_inputs(folder: Path, steps: int) -> None:
    """The model's folder, its tokenizer of whole words, and the text."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM

    model_folder = folder / "model"
    model_folder.mkdir()
    (model_folder / "config.json").write_text(json.dumps(MODEL))
    torch.manual_seed(17)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder), dtype=torch.float32)
    model.save_pretrained(model_folder)
    # Written anew: the run reads the hub's spelling.
    (model_folder / "config.json").write_text(json.dumps(MODEL))
    end = f"w{END}"
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(end, special=True)])
    tokenizer.save(str(model_folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    (model_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "text.txt").write_text(" ".join(f"w{token}" for token in tokens(steps)))


def run_torch(folder: Path, steps: int, threads: int, tuned: bool, mixed: bool) -> dict:
    """Trains in this process and returns tokens/s and the losses."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    if tuned:
        torch.set_float32_matmul_precision("medium")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=tuned
    )
    ids = torch.tensor([*tokens(steps), END])
    # Targets are shifted over the whole text, so that a row's last position has one too.
    targets = torch.cat([ids[1:], torch.tensor([-100])]).view(steps, ROWS, CONTEXT)
    inputs = ids.view(steps, ROWS, CONTEXT)
    losses, seconds = [], []
    for step in range(steps):
        started = time.perf_counter()
        step_targets = targets[step]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = model(
                input_ids=inputs[step], labels=step_targets, shift_labels=step_targets, use_cache=False
            ).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return {"tokens_per_second": ROWS * CONTEXT * (steps - 1) / sum(seconds[1:]), "losses": losses}


def measured(command: list, environment: dict) -> tuple[str, float]:
    """Runs a process to its end: its output, and its peak resident set in GB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{text[-3000:]}")
    return text, usage.ru_maxrss * 1024 / 1e9


def measure_torch(folder: Path, arguments: argparse.Namespace, tuned: bool, mixed: bool) -> dict:
    """One round of a torch contender in a process of its own."""
    command = [sys.executable, __file__, "--only-torch", str(folder), "--steps", str(arguments.steps)]
    command += ["--threads", str(arguments.threads)] + ["--tuned"] * tuned + ["--mixed"] * mixed
    text, peak = measured(command, {"GLIBC_TUNABLES": KEEP_MEMORY} if tuned else {})
    return {**json.loads(text.splitlines()[-1]), "peak_gb": peak}


def measure_tessera(folder: Path, arguments: argparse.Namespace, precision: str, round_number: int) -> dict:
    """One round of ours: `tessera train` on the same folder and text."""
    run_file = folder / "run.yaml"
    settings = {
        "model": str(folder / "model"),
        "train_data_path": str(folder / "text.txt"),
        "task_type": "CONTINUED_PRETRAIN",
        "training_duration": f"{arguments.steps}ba",
        "learning_rate": LEARNING_RATE,
        "context_length": CONTEXT,
        "global_train_batch_size": ROWS,
        "device_train_microbatch_size": ROWS,
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "0ba"},
        "shuffle": False,
        "activation_checkpointing": "none",
        "precision": precision,
        "devices": "cpu",
        "save_async": False,
        "save_folder": str(folder / "runs"),
        "run_name": f"{precision}-{round_number}",
    }
    run_file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    _, peak = measured([arguments.binary, "train", str(run_file)], {"RAYON_NUM_THREADS": str(arguments.threads)})
    log = (folder / "runs" / settings["run_name"] / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, log) if "loss/train/total" in line]
    speed = lines[-1]["throughput/tokens_per_sec"]
    return {"tokens_per_second": speed, "losses": [line["loss/train/total"] for line in lines], "peak_gb": peak}


def print_table(results: dict[str, list[dict]]) -> None:
    """Medians of each contender, their ratios to torch eager in fp32, and ours to torch's of the same precision."""
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("tokens_per_second", "peak_gb")}
        for name, runs in results.items()
    }
    base = medians["torch eager"]
    print(f"{'':18}{'tokens/s':>10}{'peak GB':>10}{'speed ratio':>14}{'memory ratio':>14}")
    for name, row in medians.items():
        speed, peak = row["tokens_per_second"], row["peak_gb"]
        ratios = f"{speed / base['tokens_per_second']:>14.2f}{peak / base['peak_gb']:>14.2f}"
        print(f"{name:18}{speed:>10.0f}{peak:>10.2f}{ratios}")
    for suffix in ("", " bf16"):
        ours, *theirs = (f"{name}{suffix}" for name in ("tessera", "torch eager", "torch tuned"))
        for other in theirs:
            ratio = medians[ours]["tokens_per_second"] / medians[other]["tokens_per_second"]
            print(f"{ours}: {ratio:.2f} times the speed of {other}")
        print(f"{ours}: losses differ by at most {difference(results, ours):.1e} from torch eager's in fp32 (relative)")
    print(f"torch eager bf16: losses differ by at most {difference(results, 'torch eager bf16'):.1e}")


def difference(results: dict[str, list[dict]], name: str) -> float:
    """The largest relative difference of a contender's losses from those of torch eager in fp32."""
    pairs = zip(results[name][0]["losses"], results["torch eager"][0]["losses"], strict=True)
    return max(abs(a - b) / b for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round, the first of which is not timed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--binary", default=str(ROOT / "target/release/tessera"))
    parser.add_argument("--only-torch", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--mixed", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps < 2 or arguments.rounds < 1:
        parser.error("at least 2 steps and 1 round are needed")
    if arguments.only_torch:
        folder = Path(arguments.only_torch)
        result = run_torch(folder, arguments.steps, arguments.threads, arguments.tuned, arguments.mixed)
        print(json.dumps(result))
        return
    names = ("torch eager", "torch tuned", "tessera", "torch eager bf16", "torch tuned bf16", "tessera bf16")
    results: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder, arguments.steps)
        for round_number in range(arguments.rounds):
            print(f"round {round_number + 1} of {arguments.rounds}", file=sys.stderr)
            for suffix, precision in (("", "fp32"), (" bf16", "amp_bf16")):
                mixed = precision != "fp32"
                eager = measure_torch(folder, arguments, tuned=False, mixed=mixed)
                tuned = measure_torch(folder, arguments, tuned=True, mixed=mixed)
                results[f"torch eager{suffix}"].append(eager)
                results[f"torch tuned{suffix}"].append(tuned)
                results[f"tessera{suffix}"].append(measure_tessera(folder, arguments, precision, round_number))
    print_table(results)


if __name__ == "__main__":
    main()
