"""Contenders run in processes of their own, in turn; what is printed are medians over the rounds."""

import os
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# glibc's allocator otherwise gives large blocks back to the system after each operator.
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"


def measured(command: list, environment: dict | None = None) -> tuple[str, float]:
    """Runs a process to its end: its output, and its peak resident set in GB."""
    with tempfile.TemporaryFile("w+") as output:
        everything = {**os.environ, **(environment or {})}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=everything)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{text[-3000:]}")
    return text, usage.ru_maxrss * 1024 / 1e9


def median(runs: list[dict], key: str) -> float:
    """The median of a figure over the rounds."""
    return statistics.median(run[key] for run in runs)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table that reads well as text and is Markdown."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    first, rest = widths[0], widths[1:]
    line = lambda cells: f"| {cells[0]:<{first}} | " + " | ".join(f"{c:>{w}}" for c, w in zip(cells[1:], rest)) + " |"
    rule = "|" + "-" * (first + 2) + "|" + "|".join("-" * (width + 1) + ":" for width in rest) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])
