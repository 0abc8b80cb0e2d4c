"""Jobs of several processes: started, hit, and waited for no longer than they may take."""

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tiny import BINARY, DEADLINE, SLACK, Folder, Wrong, expect

# The environment variables that tell a process its rank.
RANK = re.compile(rb"(?:^|\0)(?:OMPI_COMM_WORLD_RANK|SLURM_PROCID)=(\d+)\0")


def until(what: str, seconds: float, holds: Callable[[], object]) -> object:
    """Waits until something holds, and returns it."""
    end = time.monotonic() + seconds
    while not (value := holds()):
        expect(time.monotonic() < end, f"{what}: not within {seconds} s")
        time.sleep(0.002)
    return value


def mpirun(ranks: int, *arguments: str) -> list[str]:
    """A command line for ranks on this machine."""
    return ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks), *arguments]


def training(name: str, *overrides: str) -> list[str]:
    return [BINARY, "train", "run.yaml", f"run_name={name}", *overrides]


def processes(folder: Folder) -> dict[int, int]:
    """The ranks that work in a folder: rank → process."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(folder.path):
                # A tracer or a shell around a rank has its variables too.
                rank = RANK.search((entry / "environ").read_bytes())
                if rank and os.readlink(entry / "exe") == os.path.realpath(BINARY):
                    found[int(rank[1])] = int(entry.name)
        except OSError:
            continue  # It has ended meanwhile.
    return found


class Job:
    """A launcher with its ranks, each of which computes on so many threads."""

    def __init__(self, folder: Folder, command: list[str], computing: int = 1):
        self.folder = folder
        self.log = folder.path / f"log-{time.monotonic_ns()}"
        with self.log.open("wb") as log:
            environment = os.environ | {"RAYON_NUM_THREADS": str(computing)}
            self.process = subprocess.Popen(
                command, cwd=folder.path, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_) -> None:
        """Whatever happened, nothing stays."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for process in processes(self.folder).values():
            kill(process, signal.SIGKILL)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def runs(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit code, which must come in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Wrong(f"the job still runs after {seconds} s:\n{self.said()[-3000:]}") from None

    def succeeds(self, seconds: float = 60) -> None:
        code = self.wait(seconds)
        expect(code == 0, f"the job ended with {code}:\n{self.said()[-3000:]}")

    def hit(self, victim: int) -> None:
        """Waits until a rank that a tracer is to hit is gone or stands still, for as long as a crowded machine may take to come
        there."""
        seen = False

        def is_hit() -> bool:
            nonlocal seen
            process = processes(self.folder).get(victim)
            seen = seen or process is not None
            return not self.runs() or (seen if process is None else is_stopped(process))

        until(f"the fault of rank {victim}", 120, is_hit)

    def ends_after_a_fault(self, victim: int | None = None) -> int:
        """Its exit code, which must come when the ranks have waited for one another in vain: from now on, or since the victim
        was hit."""
        if victim is not None:
            self.hit(victim)
        began = time.monotonic()
        code = self.wait(DEADLINE + SLACK)
        expect(code != 0, f"the job took no notice:\n{self.said()[-3000:]}")
        # The launcher has seen all its ranks end; those on other hosts may take as long as they are allowed to.
        rest = DEADLINE + SLACK - (time.monotonic() - began)
        until("the end of all ranks", max(rest, 0), lambda: not processes(self.folder))
        return code

    def says(self, *texts: str) -> None:
        said = self.said()
        for text in texts:
            expect(text in said, f"'{text}' is not in:\n{said[-3000:]}")

    def rank(self, rank: int) -> int:
        """The process of a rank, which may still have to start."""

        def found() -> int | None:
            expect(self.runs(), f"the job is over:\n{self.said()[-3000:]}")
            return processes(self.folder).get(rank)

        return until(f"rank {rank}", 30, found)

    def trains(self, name: str, batches: int = 2) -> None:
        """Waits until some more batches are done."""
        before = len(self.folder.numbers(name))

        def more() -> bool:
            expect(self.runs(), f"the job is over:\n{self.said()[-3000:]}")
            return len(self.folder.numbers(name)) >= before + batches

        until(f"{batches} batches of {name}", 30, more)


def is_stopped(process: int) -> bool:
    """Whether all threads of a process stand still; a tracer stops each for a moment at every system call."""
    for _ in range(10):
        try:
            threads = [(thread / "stat").read_text() for thread in Path(f"/proc/{process}/task").iterdir()]
        except OSError:
            return False  # One has ended meanwhile.
        if any(thread.rpartition(")")[2].split()[0] not in "Tt" for thread in threads):
            return False
        time.sleep(0.02)
    return True


def kill(process: int, number: signal.Signals) -> bool:
    """Sends a signal; false if the process has ended."""
    try:
        os.kill(process, number)
        return True
    except ProcessLookupError:
        return False


def run_cases(*cases: Callable[[Folder], None], beside: int = 1) -> None:
    """Runs each case, or those that the command line names, in a folder of its own, so many at a time, says what held and how long
    it took, and ends with 1 if something did not. The case's first line of documentation is what it is called."""
    chosen = [case for case in cases if case.__name__ in (sys.argv[1:] or [case.__name__])]
    with ThreadPoolExecutor(beside) as threads:
        held = list(threads.map(holds, chosen))
    print(f"{sum(held)} of {len(chosen)} cases held")
    sys.exit(0 if held and all(held) else 1)


def holds(case: Callable[[Folder], None]) -> bool:
    began, folder, held = time.monotonic(), Folder(), False
    try:
        case(folder)
        folder.remove()
        held = True
    except (Wrong, OSError, subprocess.SubprocessError):
        print(f"{traceback.format_exc()}its files are left in {folder.path}")
    seconds = time.monotonic() - began
    print(f"{'ok  ' if held else 'FAIL'} {case.__doc__.splitlines()[0]} ({seconds:.1f} s)", flush=True)
    return held
