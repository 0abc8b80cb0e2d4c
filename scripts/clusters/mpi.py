#!/usr/bin/env python3
"""Real processes under mpirun: that they train as one process does, and what happens when one is killed, stands still, or was
given something else. `scripts/test-clusters mpi` starts it.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tracking"))

from jobs import Job, kill, mpirun, run_cases, training
from server import Hub
from tiny import BINARY, DEADLINE, SLACK, Folder, conversation, expect

RANKS = 3
KILLS = 24
# Several times as many batches as are done before the last fault.
LONG = ["training_duration=800ba", "save_interval=10ba", "save_num_checkpoints_to_keep=2"]
SAVED = ["training_duration=12ba", "save_interval=5ba"]


def mpi(folder: Folder, ranks: int, name: str, *overrides: str) -> Job:
    return Job(folder, mpirun(ranks, *training(name, *overrides)))


def same_as_threads_and_one_process(folder: Folder) -> None:
    """1, 2 and 4 processes: the losses of one rank, and the bits of as many threads"""
    length = "training_duration=40ba"
    folder.train("one", length)
    for ranks in (1, 2, 4):
        with mpi(folder, ranks, f"mpi{ranks}", length) as job:
            job.succeeds()
        folder.close_run(f"mpi{ranks}", "one", 1e-5)
        folder.same_as_threads(f"mpi{ranks}", ranks, length)


def split_rows(folder: Folder) -> None:
    """rows split over 2 of 4 processes, and over 2 of 2: the bits of as many threads, the losses of one rank"""
    length = "training_duration=24ba"
    folder.train("one", length)
    for ranks in (2, 4):
        layout = [length, "parallel.context=2"]
        with mpi(folder, ranks, f"mpi{ranks}", *layout) as job:
            job.succeeds()
        folder.same_as_threads(f"mpi{ranks}", ranks, *layout)
        folder.close_run(f"mpi{ranks}", "one", 1e-4)
        whole = f"whole{ranks}"
        folder.train(whole, length, f"devices=cpu:{ranks}")
        expect(folder.weights(f"mpi{ranks}") != folder.weights(whole), "no row was split: the sums are those of whole rows")


def hybrid(folder: Folder) -> None:
    """2 copies over 2 processes each, gradients in fp32 and in bf16: the bits of as many threads"""
    for dtype in ("fp32", "bf16"):
        layout = ["training_duration=12ba", "parallel.shard=2", "parallel.replicate=2", f"parallel.reduce_dtype={dtype}"]
        with mpi(folder, 4, f"mpi-{dtype}", *layout) as job:
            job.succeeds()
        folder.same_as_threads(f"mpi-{dtype}", 4, *layout)
    expect(folder.weights("mpi-fp32") != folder.weights("mpi-bf16"), "nothing was rounded")


def another_number_of_processes(folder: Folder) -> None:
    """a run goes on with 4, then 2, then 3 processes, then one, and ends with the weights of one rank"""
    # Large batches, so that a busy machine does not come to the last of them before it has told a rank to stop.
    length = ["training_duration=150ba", "global_train_batch_size=96", "save_interval=1dur", "learning_rate=1.0e-3"]
    folder.train("one", *length)
    for ranks in (4, 2, 3):
        with mpi(folder, ranks, "moved", *length) as job:
            job.trains("moved", 10)
            # As a scheduler does it at the end of its time: one rank is told.
            kill(job.rank(ranks - 1), signal.SIGTERM)
            code = job.wait(20)
            expect(code == 143, f"stopped, {ranks} processes ended with {code}:\n{job.said()[-2000:]}")
        (newest,) = {os.readlink(folder.run("moved") / "checkpoints/latest-sharded-rank0")} & set(folder.whole_checkpoints("moved"))
        shards = len(list((folder.run("moved") / "checkpoints" / newest).glob("*.distcp")))
        expect(shards == ranks, f"{newest} has {shards} shards")
    folder.train("moved", *length)
    folder.close_run("moved", "one", 1e-4)


def stopped_through_mpirun(folder: Folder) -> None:
    """mpirun told to stop: SIGUSR1 reaches the ranks at once, SIGTERM where it leaves them time; both save, and the run goes on"""
    run = ["training_duration=400ba", "save_interval=1dur", "global_train_batch_size=96"]
    with mpi(folder, RANKS, "whole", *run) as job:
        job.succeeds()
    # It ends with the ranks' own code, or with 1 because it has ended them. It waits so long before it tells them, and then
    # again before it kills them.
    patience = ["--mca", "odls_base_sigkill_timeout", "2"]
    for number, options, code in ((signal.SIGUSR1, [], 143), (signal.SIGTERM, patience, 1)):
        line = mpirun(RANKS, *training("stopped", *run))
        line[1:1] = options
        with Job(folder, line) as job:
            job.trains("stopped", 5)
            before = folder.whole_checkpoints("stopped")
            kill(job.process.pid, number)
            found = job.wait(20)
            expect(found == code, f"{number.name}: ended with {found}:\n{job.said()[-3000:]}")
        saved = folder.whole_checkpoints("stopped")
        expect(len(saved) == len(before) + 1, f"{number.name}: {saved} after {before}:\n{job.said()[-3000:]}")
    with mpi(folder, RANKS, "stopped", *run) as job:
        job.succeeds()
    folder.same_run("stopped", "whole")


def killed_at_random(folder: Folder) -> None:
    """a rank killed at random moments, 24 times: the culprit is named, the run ends with the same weights"""
    # Batches in which there is more to compute than to wait for.
    run = [*LONG, "global_train_batch_size=96"]
    with mpi(folder, RANKS, "whole", *run) as job:
        job.succeeds()
    draw, computing = random.Random(17), 0
    for number in range(KILLS):
        victim = draw.randrange(RANKS)
        with mpi(folder, RANKS, "killed", *run) as job:
            process = job.rank(victim)
            # Of three kills one comes while the run starts.
            starting = number % 3 == 0
            if not starting:
                job.trains("killed")
            time.sleep(draw.uniform(0, 0.3))
            computing += computes(process)
            expect(kill(process, signal.SIGKILL), f"the run was over before kill {number}")
            job.ends_after_a_fault()
            # mpirun does not always name a process that had not yet joined the others.
            if not starting:
                job.says(f"process rank {victim} with PID", "signal 9")
        folder.whole_checkpoints("killed")
    print(f"     {computing} of {KILLS} while the rank computed, the others while it waited for one or for the disk")
    expect(0 < computing < KILLS, "the kills did not meet the run in all its parts")
    with mpi(folder, RANKS, "killed", *run) as job:
        job.succeeds()
    folder.same_run("killed", "whole")


def computes(process: int) -> bool:
    """Whether a rank computes, and does not wait for others or for the disk. The thread that makes its collectives always
    looks for them."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        try:
            name, _, rest = (thread / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # It has ended meanwhile.
        if rest.split()[0] == "R" and name != "collectives":
            return True
    return False


# Where a rank is killed in its first checkpoint: at a system call, before it is made, on a file, and how many checkpoints
# can be seen then.
PARTIAL = ".ep0-ba5.partial"
MOMENTS = [
    (0, "mkdir", PARTIAL, 0),
    (0, "openat", f"{PARTIAL}/__0_0.distcp", 0),
    (1, "openat", f"{PARTIAL}/__1_0.distcp", 0),
    (1, "write", f"{PARTIAL}/__1_0.distcp", 0),
    (1, "fsync", f"{PARTIAL}/__1_0.distcp", 0),
    (0, "fsync", f"{PARTIAL}/__0_0.distcp", 0),
    (0, "openat", f"{PARTIAL}/..metadata.partial", 0),
    (0, "write", f"{PARTIAL}/..metadata.partial", 0),
    (0, "rename", f"{PARTIAL}/..metadata.partial", 0),
    (0, "openat", f"{PARTIAL}/.metadata", 0),
    (0, "rename", PARTIAL, 0),
    (0, "rename", ".latest-sharded-rank0.symlink.partial", 1),
    (0, "rename", ".latest-sharded-rank0.partial", 1),
]


def killed_while_saving(folder: Folder) -> None:
    """a rank killed at each step of a checkpoint, before, within and after .metadata: none is half visible"""
    with mpi(folder, RANKS, "whole", *SAVED) as job:
        job.succeeds()
    for number, (victim, call, file, visible) in enumerate(MOMENTS):
        name = f"killed{number}"
        checkpoints = folder.run(name) / "checkpoints"
        with Job(folder, struck(folder, victim, call, checkpoints / file, training(name, *SAVED))) as job:
            job.ends_after_a_fault(victim)
            job.says(f"process rank {victim} with PID", "signal 9")
        expect(checkpoints.is_dir(), f"{call} on {file}: the kill came too early")
        seen = folder.whole_checkpoints(name)
        expect(len(seen) == visible, f"{call} on {file}: {seen} can be seen")
        with mpi(folder, RANKS, name, *SAVED) as job:
            job.succeeds()
        folder.same_run(name, "whole")
        hidden = [path.name for path in checkpoints.iterdir() if path.name.startswith(".")]
        expect(not hidden, f"{call} on {file}: {hidden} stayed")


def struck(folder: Folder, victim: int, call: str, file: Path, command: list[str], fault: str = "signal=KILL") -> list[str]:
    """A command line for ranks of which the victim is killed, or has another fault, when it comes to a system call on a file."""
    # The tracer compares paths as they are written; those of open files are whole.
    paths = ["-P", os.path.relpath(file, folder.path), "-P", str(file)]
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", *paths, "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
    parts = [(victim, command), (1, strace + command), (RANKS - victim - 1, command)]
    groups = [["-n", str(count), *part] for count, part in parts if count]
    line = mpirun(0)[:-2] + groups[0]
    for group in groups[1:]:
        line += [":", *group]
    return line


def stands_still(folder: Folder) -> None:
    """a rank that stands still longer than the deadline: all others end with 4 and name it; `runs why` explains"""
    for victim in (1, 0):
        name = f"stopped{victim}"
        # Each rank's own exit code: mpirun would end the others with the first, and may end their shells all the same.
        shell = ["sh", "-c", 'trap : TERM; "$0" "$@"; echo $? > code-$OMPI_COMM_WORLD_RANK', *training(name, *LONG)]
        line = mpirun(RANKS, *shell)
        line[1:1] = ["--mca", "orte_abort_on_non_zero_status", "0"]
        with Job(folder, line) as job:
            process = job.rank(victim)
            job.trains(name)
            kill(process, signal.SIGSTOP)
            # Whoever waits for it is told to stop meanwhile, and cannot: that is no reason to wait longer.
            kill(job.rank(2), signal.SIGTERM)
            began = time.monotonic()
            others = [folder.path / f"code-{rank}" for rank in range(RANKS) if rank != victim]
            while not all(path.exists() and path.read_text() for path in others):
                waited = time.monotonic() - began
                expect(waited < DEADLINE + SLACK, f"the others wait for rank {victim}:\n{job.said()[-3000:]}")
                time.sleep(0.05)
            codes = [path.read_text().strip() for path in others]
            expect(codes == ["4"] * len(others), f"the others ended with {codes}:\n{job.said()[-3000:]}")
            job.says(f"has not ended for {DEADLINE} s; rank {victim} did not come to it")
            kill(process, signal.SIGKILL)
            job.wait(10)
        for path in others:
            ring = folder.run(name) / f"flight/rank-{path.name.removeprefix('code-')}.jsonl"
            expect(ring.is_file(), f"{ring} is not there")
            path.unlink()
        why = folder.tessera("runs", "why", folder.run(name))
        # mpirun may wake it before it ends it, and then it leaves its ring too.
        silent = f"Rank {victim} left no record of its collectives: it was killed or stood still"
        expect(silent in why or f"Rank {victim} stood still for" in why, why)
        folder.whole_checkpoints(name)


def stands_still_and_mpirun_ends_it(folder: Folder) -> None:
    """a rank that stands still: the whole job ends with 4 within the deadline + 5 s, and goes on as if nothing had been"""
    with mpi(folder, RANKS, "whole", *LONG) as job:
        job.succeeds()
    with mpi(folder, RANKS, "stopped", *LONG) as job:
        job.trains("stopped", 30)
        kill(job.rank(1), signal.SIGSTOP)
        code = job.ends_after_a_fault()
        expect(code == 4, f"the job ended with {code}")
        job.says(f"has not ended for {DEADLINE} s; rank 1 did not come to it")
    with mpi(folder, RANKS, "stopped", *LONG) as job:
        job.succeeds()
    folder.same_run("stopped", "whole")


def stands_still_before_it_trains(folder: Folder) -> None:
    """a rank that stands still before it joins, or while it prepares: the others end with 4 at the deadline and name it"""
    starting = ["dist_startup_timeout=2", *LONG]
    for victim, file, message in (
        (1, folder.path / "model/config.json", "nothing is seen of rank 1"),
        (0, folder.path / "train.jsonl", "rank 0 did not come to it"),
    ):
        name = f"stopped{victim}"
        with Job(folder, struck(folder, victim, "openat", file, training(name, *starting), "signal=STOP")) as job:
            expect(job.ends_after_a_fault(victim) == 4, f"not with 4:\n{job.said()[-3000:]}")
            job.says(message)
            expect(not folder.numbers(name), "it trained before it was stopped")


def fails_where_mpirun_ends_nothing(folder: Folder) -> None:
    """a rank whose disk fails, under an mpirun that ends nobody for it: the job ends at once, with the rank's own code"""
    patient = ["dist_timeout=300", "dist_startup_timeout=300", *LONG]
    line = struck(folder, 1, "openat", folder.path / "train.jsonl", training("failed", *patient), "error=EIO")
    line[1:1] = ["--mca", "orte_abort_on_non_zero_status", "0"]
    with Job(folder, line) as job:
        code = job.wait(60)
        expect(code in (3, 4), f"the job ended with {code}:\n{job.said()[-3000:]}")
        job.says("train.jsonl", "Input/output error")


def comes_late(folder: Folder) -> None:
    """a rank that comes to the start long after the others: it is named, and the run trains"""
    late = struck(folder, 2, "openat", folder.path / "model/config.json", training("late", *SAVED), "delay_enter=12s")
    with Job(folder, late) as job:
        job.succeeds()
        job.says("warning: rank 2 on", "s after the first rank to the start of the run")


def registers_for_longer_than_ranks_wait(folder: Folder) -> None:
    """a hub that takes longer to take the model than ranks wait for one another, at the end of the run and when it is started again"""
    hub = Hub("wr1te", takes=2 * DEADLINE)
    token = ["env", f"HF_ENDPOINT={hub.address}", "HF_HUB_OFFLINE=0", "HF_TOKEN=wr1te", f"HF_HOME={folder.path}/hf"]
    for repository in ("first", "second"):
        overrides = [f"register_to=hf://org/{repository}", f"dist_startup_timeout={DEADLINE + 2}"]
        with Job(folder, mpirun(2, *token, *training("slow", *SAVED, *overrides))) as job:
            job.succeeds()
            job.says(f"commit {len(hub.commits) - 1:040x} of {hub.address}/org/{repository}")
        hub.takes = 2 * (DEADLINE + 2)
    expect(len(hub.commits) == 2, f"{len(hub.commits)} commits")


def refuses_differences(folder: Folder) -> None:
    """processes with another run file, data, model or settings: refused with 2, by name"""
    plain = [BINARY, "train", "run.yaml", f"save_folder={folder.path}/runs", "training_duration=4ba"]
    others = {name: folder.path / name for name in ("data", "model")}
    for place in others.values():
        folder.write_inputs(place, {"rms_norm_eps": 1e-6} if place.name == "model" else {})
    with (others["data"] / "train.jsonl").open("a") as file:
        file.write(conversation(0))
    cases = [
        ("seed", folder.path, ["seed=18"]),
        ("learning_rate", folder.path, ["learning_rate=1.0e-3"]),
        ("training data", others["data"], []),
        ("model's files", others["model"], []),
    ]
    for number, (key, place, overrides) in enumerate(cases):
        name = [f"run_name=differs{number}"]
        line = mpirun(1, *plain, *name) + [":", "-n", "1", "-wdir", str(place), *plain, *name, *overrides]
        with Job(folder, line) as job:
            code = job.wait(30)
            expect(code == 2, f"{key}: ended with {code}:\n{job.said()[-3000:]}")
            job.says(f"rank 1 sees another {key} than rank 0")
    elsewhere = mpirun(1, *plain, "run_name=split") + [":", "-n", "1", *plain, "run_name=split", f"save_folder={folder.path}/other"]
    with Job(folder, elsewhere) as job:
        expect(job.wait(30) == 2, job.said()[-3000:])
        job.says("is not there for rank 1: save_folder must be one folder that all nodes see")
    # What rank 0 alone finds out is the user's fault on every rank, which no scheduler should try again.
    with mpi(folder, 2, "missing", "train_data_path=absent.jsonl") as job:
        code = job.wait(30)
        expect(code == 2, f"ended with {code}:\n{job.said()[-3000:]}")
        job.says("absent.jsonl")


def flip_a_bit(weights: Path, tensor: str, element: int) -> None:
    """Turns the last bit of an fp32 value into the other one."""
    with weights.open("r+b") as file:
        header = int.from_bytes(file.read(8), "little")
        start = json.loads(file.read(header))[tensor]["data_offsets"][0]
        place = 8 + header + start + 4 * element
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def refuses_weights_that_differ_in_one_bit(folder: Folder) -> None:
    """weights of which one bit differs in the copy of one node: refused with 2 before the first step, with ranks and tensor"""
    folder.train("origin", "training_duration=1ba")
    tensor = "model.embed_tokens.weight"
    plain = [BINARY, "train", "run.yaml", f"save_folder={folder.path}/runs", "training_duration=4ba", "init=pretrained"]
    # The first two lie in the slice of rank 0, the last in that of rank 1; none where a run looks for a first impression.
    for number, element in enumerate((None, 100, 3000, 9000)):
        place = folder.path / f"node{number}"
        folder.write_inputs(place, {})
        for model in (folder.path / "model", place / "model"):
            shutil.copy(folder.run("origin") / "huggingface/ba1/model.safetensors", model)
        if element is not None:
            flip_a_bit(place / "model/model.safetensors", tensor, element)
        name = f"run_name=bit{number}"
        with Job(folder, mpirun(1, *plain, name) + [":", "-n", "1", "-wdir", str(place), *plain, name]) as job:
            if element is None:
                job.succeeds()
                continue
            code = job.wait(30)
            expect(code == 2, f"element {element}: ended with {code}:\n{job.said()[-3000:]}")
            job.says(f"ranks 0 and 1 start from different weights: {tensor}")
        expect(not folder.numbers(f"bit{number}"), f"element {element}: it trained")


def main() -> None:
    for tool in ("mpirun", "strace"):
        expect(shutil.which(tool) is not None, f"{tool} is not installed")
    run_cases(
        same_as_threads_and_one_process,
        hybrid,
        split_rows,
        another_number_of_processes,
        refuses_differences,
        refuses_weights_that_differ_in_one_bit,
        stands_still,
        stands_still_and_mpirun_ends_it,
        stands_still_before_it_trains,
        fails_where_mpirun_ends_nothing,
        comes_late,
        registers_for_longer_than_ranks_wait,
        stopped_through_mpirun,
        killed_while_saving,
        killed_at_random,
    )


if __name__ == "__main__":
    main()
