#!/usr/bin/env python3
"""Whole training steps in PyTorch (transformers) beside ours: tokens/s, peak memory, and their ratios.

The same weights, the same tokens (a made-up text of words w0 … w31999, one token each), 4 rows of 512 tokens a step, AdamW, on the
CPU. So the losses must agree too, and that is printed. Cases: `llama`, 56 M parameters (hidden 512, 8 layers, 8 heads of which
4 for keys and values, feed-forward 1376, untied head), in fp32 and in mixed precision (torch's bf16 autocast, our
`precision: amp_bf16`), blocks kept, and recomputed; `mixtral` and `dbrx`, 4 layers of the same width with 8 and 16 experts, in fp32;
`attention` alone, over 8,192 tokens of one document and of several (attention.py).

Each contender runs in a process of its own, in rounds one after the other; the figures are medians over the rounds. Tokens/s leaves
out a run's first step, as our own log does. Peak memory is the process's peak resident set. "torch eager" is what a fresh install
does; "torch tuned" adds the fused AdamW, oneDNN products (float32 matmul precision 'medium') and an allocator that keeps its
memory; "torch compiled" adds torch.compile to that. The share of the roofline is the operations that the step needs, blocks computed
once, by the multiply-adds that the cores do from registers, measured in the same run (benches/ceilings.rs).

  scripts/bench-vs-torch [CASE …] [--rounds 3] [--steps 6] [--threads 2 1] [--without-compiled] [--without-bf16]
                         [--picture FILE.svg]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import models
from processes import KEEP_MEMORY, ROOT, measured, median, table
from torch_step import LEARNING_RATE

ATTENTION = "attention"
TORCH = {"torch eager": [], "torch tuned": ["tuned"], "torch compiled": ["tuned", "compiled"]}


def torch_step(folder: Path, steps: int, threads: int, options: list[str]) -> dict:
    """One round of a torch contender."""
    command = [sys.executable, Path(__file__).with_name("torch_step.py"), folder, str(steps), str(threads), *options]
    text, peak = measured(command, {"GLIBC_TUNABLES": KEEP_MEMORY} if "tuned" in options else {})
    return {**json.loads(text.splitlines()[-1]), "peak_gb": peak}


def tessera_step(binary: str, folder: Path, steps: int, threads: int, options: list[str]) -> dict:
    """One round of ours: `tessera train` on the same folder and text."""
    run_file = folder / "run.yaml"
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        settings = {
            "model": str(folder / "model"),
            "train_data_path": str(folder / "text.txt"),
            "task_type": "CONTINUED_PRETRAIN",
            "training_duration": f"{steps}ba",
            "learning_rate": LEARNING_RATE,
            "context_length": models.CONTEXT,
            "global_train_batch_size": models.ROWS,
            "device_train_microbatch_size": models.ROWS,
            "scheduler": {"name": "constant_with_warmup", "t_warmup": "0ba"},
            "shuffle": False,
            "activation_checkpointing": "block" if "recompute" in options else "none",
            "precision": "amp_bf16" if "bf16" in options else "fp32",
            "devices": "cpu",
            "save_async": False,
            "save_folder": runs,
            "run_name": "run",
        }
        run_file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
        _, peak = measured([binary, "train", run_file], {"RAYON_NUM_THREADS": str(threads)})
        log = (Path(runs) / "run/metrics.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, log) if "loss/train/total" in line]
    speed = lines[-1]["throughput/tokens_per_sec"]
    return {"tokens_per_second": speed, "losses": [line["loss/train/total"] for line in lines], "peak_gb": peak}


def ceiling(threads: int) -> float:
    """Floating-point operations a second that so many threads do at most."""
    command = [os.environ.get("CARGO", "cargo"), "bench", "--quiet", "-p", "tessera-benches", "--bench", "ceilings"]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    return json.loads(run.stdout.splitlines()[-1])["operations"]


def contenders(case: str, arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Names and options, in the order in which a round runs them."""
    chosen = [name for name in TORCH if not (arguments.without_compiled and name == "torch compiled")]
    variants = [[], ["recompute"], ["bf16"], ["bf16", "recompute"]] if case == "llama" else [[]]
    variants = [variant for variant in variants if not (arguments.without_bf16 and "bf16" in variant)]
    found = []
    for variant in variants:
        # What recomputing costs torch is asked of its best form without a compiler.
        engines = ["torch tuned", "tessera"] if "recompute" in variant else [*chosen, "tessera"]
        found += [(", ".join([engine, *variant]), TORCH.get(engine, []) + variant) for engine in engines]
    return found


def compare(case: str, threads: int, folder: Path, arguments: argparse.Namespace) -> dict[str, list[dict]]:
    """All rounds of a case; prints its table."""
    title, _, operations = models.CASES[case]
    results: dict[str, list[dict]] = {}
    peak = ceiling(threads) if operations else 0.0
    for number in range(arguments.rounds):
        for name, options in contenders(case, arguments):
            print(f"{title}, threads: {threads}, round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
            if name.startswith("tessera"):
                run = tessera_step(arguments.binary, folder, arguments.steps, threads, options)
            else:
                run = torch_step(folder, arguments.steps, threads, options)
            results.setdefault(name, []).append(run)
    if operations:
        peak = max(peak, ceiling(threads))
    print(f"\n{title}, threads: {threads}, rounds: {arguments.rounds}, load: {os.getloadavg()[1]:.1f}\n")
    print_table(results, operations / peak if operations else None)
    return results


def print_table(results: dict[str, list[dict]], best_seconds: float | None) -> None:
    """Medians, their ratios to torch eager, and ours to the best of torch in the same precision."""
    base, tokens = results["torch eager"], models.ROWS * models.CONTEXT
    rows = []
    for name, runs in results.items():
        speed, memory = median(runs, "tokens_per_second"), median(runs, "peak_gb")
        cells = [f"{speed:.0f}", f"{memory:.2f}", f"{speed / median(base, 'tokens_per_second'):.2f}"]
        cells += [f"{memory / median(base, 'peak_gb'):.2f}", f"{difference(runs, base):.1e}"]
        rows.append([name, *cells, f"{100 * best_seconds * speed / tokens:.0f} %" if best_seconds else "–"])
    print(table(["", "tokens/s", "peak GB", "speed ratio", "memory ratio", "loss differs by", "of roofline"], rows))
    print()
    for name, runs in results.items():
        variant = name.removeprefix("tessera")
        theirs = [other for other in results if other.startswith("torch") and other in {kind + variant for kind in TORCH}]
        if name.startswith("tessera") and theirs:
            best = max(theirs, key=lambda other: median(results[other], "tokens_per_second"))
            speed, memory = (median(runs, key) / median(results[best], key) for key in ("tokens_per_second", "peak_gb"))
            print(f"{name}: {speed:.2f} times the speed of {best}, {memory:.2f} times its memory")


def difference(runs: list[dict], base: list[dict]) -> float:
    """The largest relative difference of a contender's losses from those of torch eager in fp32."""
    return max(abs(a - b) / b for a, b in zip(runs[0]["losses"], base[0]["losses"], strict=True))


def draw(path: Path, all_results: dict[tuple[str, int], dict[str, list[dict]]]) -> None:
    """Tokens/s of every contender as bars, ours in colour, one panel for each table."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(all_results), squeeze=False, figsize=(8, 1 + 0.32 * sum(map(len, all_results.values()))),
        height_ratios=[len(results) for results in all_results.values()], layout="constrained",
    )
    for panel, ((case, threads), results) in zip(panels[:, 0], all_results.items()):
        names, speeds = list(results), [median(runs, "tokens_per_second") for runs in results.values()]
        bars = panel.barh(names, speeds, color=["#c2410c" if name.startswith("tessera") else "#94a3b8" for name in names])
        panel.bar_label(bars, fmt="%.0f", padding=3)
        panel.invert_yaxis()
        panel.set_title(f"{models.CASES[case].title}, threads: {threads}: tokens/s", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join([*models.CASES, ATTENTION])}; all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round, the first of which is not timed")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--without-compiled", action="store_true", help="torch.compile takes minutes a process")
    parser.add_argument("--without-bf16", action="store_true", help="torch takes minutes on processors that have no instructions for it")
    parser.add_argument("--picture", type=Path, help="where bars are drawn, as SVG")
    parser.add_argument("--binary", default=str(ROOT / "target/release/tessera"))
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - {*models.CASES, ATTENTION}
    if unknown or arguments.steps < 2 or arguments.rounds < 1:
        parser.error(f"no case {', '.join(unknown)}" if unknown else "at least 2 steps and 1 round are needed")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for case in arguments.cases or [*models.CASES, ATTENTION]:
            if case == ATTENTION:
                for threads in arguments.threads:
                    subprocess.run([sys.executable, Path(__file__).with_name("attention.py"), str(threads)], check=True)
                continue
            folder = Path(temporary) / case
            models.write(folder, models.CASES[case], arguments.steps)
            for threads in arguments.threads:
                results[case, threads] = compare(case, threads, folder, arguments)
    if arguments.picture and results:
        draw(arguments.picture, results)


if __name__ == "__main__":
    main()
