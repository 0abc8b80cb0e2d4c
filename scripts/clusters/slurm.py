#!/usr/bin/env python3
"""A Slurm cluster of two nodes on this machine, and runs under srun and sbatch: that they train as one process does, end when a
rank dies or stands still, and go on when they are requeued. `scripts/test-clusters slurm` starts it.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from jobs import Job, kill, processes, run_cases, training, until
from tiny import BINARY, DEADLINE, ROOT, SLACK, Folder, expect

NODES = ("n1", "n2")
KILLS = 8
LONG = ["training_duration=600ba", "save_interval=10ba", "save_num_checkpoints_to_keep=2"]

# Two nodes of one machine differ by their names, ports and folders. Nothing here needs more rights than root has in a
# container: no control groups, no accounting. A short life of credentials, because a requeued job waits for their end.
CONFIGURATION = """\
ClusterName=tessera
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=pmix
KillWait=10
ReturnToService=2
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=60 State=UP
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


class Cluster:
    """munged, slurmctld and two slurmd, in a folder of their own; what Slurm is installed or runs here is left alone."""

    def __init__(self):
        # Sockets must not have long paths.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for name in ("state", *(f"{kind}.{node}" for kind in ("spool", "tmp") for node in NODES)):
            (self.folder / name).mkdir()
        port, *ports = free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=4" for node, port in zip(NODES, ports)
        ]
        configuration = self.folder / "slurm.conf"
        values = {"host": socket.gethostname().split(".")[0], "folder": self.folder, "port": port}
        configuration.write_text(CONFIGURATION.format(**values, nodes="\n".join(nodes), names=",".join(NODES)))
        os.environ["SLURM_CONF"] = str(configuration)
        munge = [f"--{what}-file={self.folder}/munge.{what}" for what in ("key", "pid", "log", "seed")]
        self.daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *munge)
        until("munged's socket", 10, (self.folder / "munge.socket").exists)
        self.daemon("slurmctld", "-D")
        for node in NODES:
            self.daemon("slurmd", "-D", "-N", node)
        until("two idle nodes", 30, lambda: slurm("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() == list(NODES))

    def daemon(self, *command: str) -> None:
        with (self.folder / f"log.{len(self.daemons)}").open("wb") as log:
            self.daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder))

    def stop(self) -> None:
        if len(self.daemons) > 1:
            slurm("scancel", "--quiet", "--signal=KILL", "--full", "--user=root")
            slurm("scancel", "--quiet", "--user=root")
            deadline = time.monotonic() + 20
            while slurm("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def slurm(*command: str) -> str:
    """What a command of Slurm prints; it may fail where nothing runs yet, or no longer."""
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30, check=False)
    return ran.stdout.strip()


def srun(folder: Folder, ranks: int, name: str, *overrides: str, options: tuple[str, ...] = ()) -> Job:
    return Job(folder, ["srun", "--nodes=2", f"--ntasks={ranks}", "--mpi=pmix", *options, *training(name, *overrides)])


def same_as_threads(folder: Folder) -> None:
    """srun -N2 with 2 and 3 ranks: the bits of as many threads"""
    for ranks in (2, 3):
        with srun(folder, ranks, f"srun{ranks}", "training_duration=24ba") as job:
            job.succeeds()
        folder.same_as_threads(f"srun{ranks}", ranks, "training_duration=24ba")


def stands_still(folder: Folder) -> None:
    """a rank that stands still under srun, which ends nobody by itself: each of the others ends with 4 in time"""
    with srun(folder, 3, "stopped", *LONG, options=("--kill-on-bad-exit=0",)) as job:
        process = job.rank(1)
        job.trains("stopped", 10)
        kill(process, signal.SIGSTOP)
        until("the end of the others", DEADLINE + SLACK, lambda: list(processes(folder)) == [1])
        kill(process, signal.SIGKILL)
        job.wait(20)
        ended = re.findall(r"tasks? ([\d,-]+): Exited with exit code 4", job.said())
        numbers = {int(number) for tasks in ended for number in re.split("[,-]", tasks)}
        expect(numbers == {0, 2}, f"{ended}:\n{job.said()[-3000:]}")
        job.says(f"has not ended for {DEADLINE} s; rank 1 did not come to it")
    why = folder.tessera("runs", "why", folder.run("stopped"))
    expect("Rank 1 left no record of its collectives: it was killed or stood still" in why, why)


def dies_before_it_joins(folder: Folder) -> None:
    """a rank that ends before it has joined, under srun that does not end the others: they end with 4 at the deadline"""
    script = '[ "$SLURM_PROCID" = 1 ] && exit 9; exec "$0" "$@"'
    shell = ["sh", "-c", script, *training("alone", "dist_startup_timeout=2")]
    with Job(folder, ["srun", "--nodes=2", "--ntasks=2", "--mpi=pmix", "--kill-on-bad-exit=0", *shell]) as job:
        job.wait(2 + SLACK + 5)
        job.says("task 0: Exited with exit code 4", "joined within 2 s (dist_startup_timeout): nothing is seen of rank 1")


def submit(folder: Folder, name: str, *overrides: str, binary: str = BINARY, requeue_after: int = 0) -> str:
    """Submits the job file that the README shows; returns the job's number."""
    settings = {"TESSERA": binary, "RAYON_NUM_THREADS": "1", "TESSERA_REQUEUE_AFTER": str(requeue_after)}
    environment = os.environ | settings
    script = [str(ROOT / "configs/slurm.sbatch"), "run.yaml", f"run_name={name}", *overrides]
    line = ["sbatch", "--parsable", f"--output={folder.path}/slurm-{name}.log", *script]
    ran = subprocess.run(line, cwd=folder.path, env=environment, capture_output=True, text=True, check=False)
    expect(ran.returncode == 0, f"sbatch: {ran.stderr}")
    return ran.stdout.strip()


def job_state(job: str) -> str:
    return slurm("squeue", "-h", "-j", job, "-o", "%T")


def ends(folder: Folder, job: str, name: str) -> None:
    """Waits for the end of a job, which must be a good one."""
    log = folder.path / f"slurm-{name}.log"

    def done() -> bool:
        said = log.read_text() if log.exists() else ""
        # A job that was killed after its last batch finds that it is finished.
        return "Done: 600 batches." in said or "all 600 batches are done" in said

    until(f"the end of job {job}, whose log is {log}", 120, lambda: done() and not job_state(job))


def not_requeued(folder: Folder) -> None:
    """a job whose rank is lost in its first minutes is not started again: it would end the same way"""
    job, log = submit(folder, "early", *LONG, requeue_after=300), folder.path / "slurm-early.log"
    until("a batch", 60, lambda: folder.numbers("early"))
    slurm("scancel", "--signal=KILL", f"{job}.0")
    until(f"the end of job {job}", 60, lambda: not job_state(job))
    expect("not requeued" in log.read_text(), f"{log} does not say why the job ended")


# Ends of a rank that the job goes on from: killed, as by a node without memory, aborted, files or memory lost.
LOST = (signal.SIGKILL, signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV)

# What stands for the binary where one rank of a job is to be given something else.
ODD_RANK = """\
#!/bin/sh
[ "$SLURM_PROCID" != 1 ] || set -- "$@" {override}
exec {binary} "$@"
"""


# What stands for the binary where one rank has a fault of the program's own.
PANICKED = """\
#!/bin/sh
[ "$SLURM_PROCID" != 1 ] || exit 101
exec {binary} "$@"
"""


def fails_by_itself(folder: Folder) -> None:
    """a rank that ends by a fault of the program: the job ends with 101 and is not started again, whatever the others end with"""
    binary = folder.path / "tessera-panicked"
    binary.write_text(PANICKED.format(binary=BINARY))
    binary.chmod(0o755)
    job = submit(folder, "panicked", *LONG, binary=str(binary))
    until(f"the end of job {job}", 60, lambda: not job_state(job))
    state = slurm("scontrol", "-o", "show", "job", job)
    expect("Restarts=0" in state and "ExitCode=101:0" in state, state)


def refused(folder: Folder) -> None:
    """a rank whose input is at fault, before it joins the others or after: the job ends with 2 and is not started again"""
    cases = {
        "unread": ("nonsense=1", "nonsense"),
        "absent": ("model=absent", "absent"),
        "differs": ("seed=18", "rank 1 sees another seed than rank 0"),
    }
    for name, (override, message) in cases.items():
        binary = folder.path / f"tessera-{name}"
        binary.write_text(ODD_RANK.format(override=override, binary=BINARY))
        binary.chmod(0o755)
        job, log = submit(folder, name, *LONG, binary=str(binary)), folder.path / f"slurm-{name}.log"
        until(f"the end of job {job}", 60, lambda: not job_state(job))
        state, said = slurm("scontrol", "-o", "show", "job", job), log.read_text()
        expect("Restarts=0" in state and "ExitCode=2:0" in state, f"{name}: {state}\n{said}")
        expect(message in said, f"{name}: {said}")


def told_to_stop(folder: Folder) -> None:
    """a job at the end of its time, three times: every rank is told, it saves, ends with 143 and goes on to the same weights"""
    # As --signal=TERM@120 tells them: the ranks of all steps, not the batch script.
    ends(folder, submit(folder, "whole", *LONG), "whole")
    job, log = submit(folder, "told", *LONG), folder.path / "slurm-told.log"
    for number in range(1, 4):
        until("a batch", 60, lambda before=len(folder.numbers("told")): len(folder.numbers("told")) > before + 1)
        expect(job_state(job) == "RUNNING", f"the job was over before signal {number}: {job_state(job)}")
        slurm("scancel", "--signal=TERM", job)
        until("its stop", 30, lambda number=number: log.read_text().count("Stopped by SIGTERM after") == number)
        until("the end of the ranks", 30, lambda: not processes(folder))
        restarts = f"Restarts={number} "
        until("its second start", 30, lambda restarts=restarts: restarts in slurm("scontrol", "-o", "show", "job", job))
        # srun names tasks with one code in one line, or in several.
        tasks = re.findall(r"tasks? ([\d,-]+): Exited with exit code 143", log.read_text())
        expect(len(tasks) >= number, f"not every time with 143: {tasks}")
        stopped = len(folder.numbers("told"))
        newest = (folder.run("told") / "checkpoints/latest-sharded-rank0.symlink").read_text().strip()
        expect(newest.endswith(f"-ba{stopped}"), f"{newest} was saved after {stopped} batches")
        folder.whole_checkpoints("told")
    ends(folder, job, "told")
    folder.same_run("told", "whole")


def lose(folder: Folder, number: signal.Signals) -> None:
    """Ends all ranks by a signal. A handler that looks for a fault of its own takes the first one for none."""
    until(f"ranks ended by {number.name}", 20, lambda: not [kill(process, number) for process in processes(folder).values()])


def requeued(folder: Folder) -> None:
    """a job requeued, or its ranks ended by signals, 8 times at random moments: it ends with the same weights"""
    ends(folder, submit(folder, "whole", *LONG), "whole")
    draw, job = random.Random(17), submit(folder, "killed", *LONG)
    for number in range(KILLS):
        until("a batch", 60, lambda before=len(folder.numbers("killed")): len(folder.numbers("killed")) > before + 1)
        time.sleep(draw.uniform(0, 0.5))
        expect(job_state(job) == "RUNNING", f"the job was over before kill {number}: {job_state(job)}")
        if number % 2:
            # To the ranks, not to the batch script.
            lose(folder, LOST[number // 2 % len(LOST)])
        else:
            slurm("scontrol", "requeue", job)
        until("the end of the ranks", 20, lambda: not processes(folder))
        folder.whole_checkpoints("killed")
    ends(folder, job, "killed")
    folder.same_run("killed", "whole")


def main() -> None:
    for tool in ("munged", "slurmctld", "slurmd", "srun", "sbatch"):
        expect(shutil.which(tool) is not None, f"{tool} is not installed")
    with Cluster():
        run_cases(same_as_threads, stands_still, dies_before_it_joins, not_requeued, refused, fails_by_itself, told_to_stop, requeued)


if __name__ == "__main__":
    main()
