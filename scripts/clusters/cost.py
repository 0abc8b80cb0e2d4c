#!/usr/bin/env python3
"""What sharding costs on one machine: CPU time of a step, and memory of a rank against the plan, for the same global batch on 1, 2, 4
and 8 ranks, as threads of one process and as processes under mpirun. Each rank computes on one thread. Two busy cores of one chip
are slower than one, each, so the ranks are held against one rank that computes on two threads. Prints a table.

  TESSERA_BINARY=target/tessera-mpi scripts/clusters/cost.py
"""

import json
import resource
import statistics
import time

from jobs import Job, mpirun, processes, training
from memory import anonymous_bytes
from tiny import ROOT, Folder

MODEL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3}
RUN = [
    "task_type=CONTINUED_PRETRAIN",
    "train_data_path=text.txt",
    "context_length=128",
    "global_train_batch_size=8",
    "device_train_microbatch_size=2",
    "learning_rate=1.0e-4",
    "packing=best_fit",
    "save_interval=1dur",
    "save_async=false",
    "dist_timeout=60",
]
# What lies between a short run and a long one is steps alone; the start, the checkpoint and the export are in both.
SHORT, LONG = 2, 8
BASE = "1 rank, on two cores"
ROUNDS = 3


def run(folder: Folder, command: list[str], computing: int) -> tuple[float, int]:
    """CPU seconds of a run, and the most anonymous memory that one of its processes had."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    most = 0
    with Job(folder, command, computing) as job:
        while job.runs():
            # Ranks under mpirun, or the one process without it.
            most = max([most, *map(anonymous_bytes, [*processes(folder).values()] or [job.process.pid])])
            time.sleep(0.05)
        job.succeeds()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, most


def planned(folder: Folder, ranks: int, threads: bool) -> float:
    """Bytes that a rank needs by the plan."""
    how = [f"devices=cpu:{ranks}"] if threads else ["--processes", str(ranks)]
    plan = json.loads(folder.tessera("plan", "run.yaml", *RUN, "training_duration=2ba", *how, "--json"))
    return plan["memory_total_bytes"] / (ranks if threads else 1)


def main() -> None:
    folder = Folder(MODEL)
    sources = sorted((ROOT / "crates").glob("*/src/*.rs"))
    (folder.path / "text.txt").write_text("".join(source.read_text() for source in sources))
    kinds = {"1 rank": (1, None, 1), BASE: (1, None, 2)}
    for ranks in (2, 4, 8):
        kinds[f"{ranks} threads"] = (ranks, [f"devices=cpu:{ranks}"], 1)
        kinds[f"{ranks} processes"] = (ranks, None, 1)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, int] = {}
    for number in range(ROUNDS):
        # Kinds take turns, so that a busy machine is busy for all.
        for kind, (ranks, devices, computing) in kinds.items():
            used = []
            for batches in (SHORT, LONG):
                name = f"{kind} {batches} {number}".replace(" ", "-")
                command = training(name, *RUN, f"training_duration={batches}ba", *(devices or []))
                if devices is None and ranks > 1:
                    command = mpirun(ranks, *command)
                cpu, most = run(folder, command, computing)
                used.append(cpu)
                memory[kind] = most
            seconds[kind].append((used[1] - used[0]) / (LONG - SHORT))
    base = statistics.median(seconds[BASE])
    print("| ranks | CPU s a step (median, least, most) | against one on two cores | planned MB, a rank | anonymous MB, a rank |")
    print("|---|---|---:|---:|---:|")
    for kind, values in seconds.items():
        median = statistics.median(values)
        ranks, threads, _ = kinds[kind]
        each = memory[kind] / (ranks if threads else 1) / 1e6
        plan = planned(folder, ranks, bool(threads)) / 1e6
        spread = f"{min(values):.3f}–{max(values):.3f}"
        print(f"| {kind} | {median:.3f} ({spread}) | {median / base:.2f} | {plan:.0f} | {each:.0f} |")
    folder.remove()


if __name__ == "__main__":
    main()
