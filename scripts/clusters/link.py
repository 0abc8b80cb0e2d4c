#!/usr/bin/env python3
"""Two hosts made of network namespaces, with a link between them that can be cut: a run under mpirun over TCP trains as one
process does, ends when the link is cut, and goes on when it is back. `scripts/test-clusters link` starts it; needs root.
"""

import os
import shutil
import stat
import subprocess
import time

from jobs import Job, run_cases, training
from tiny import DEADLINE, Folder, expect

LONG = ["training_duration=400ba", "save_interval=10ba", "save_num_checkpoints_to_keep=2"]
# What stands for ssh: the address of a host, then a command line for its shell.
AGENT = """\
#!/bin/sh
case $1 in
{cases}
esac
shift
exec ip netns exec "$space" unshare --uts sh -c "hostname $space; $*"
"""
# mpirun finds out about hosts that are cut off as quickly as the ranks do; by itself it would take eight minutes.
KEEPALIVE = {"oob_tcp_keepalive_time": 1, "oob_tcp_keepalive_intvl": 1, "oob_tcp_keepalive_probes": 3}


def ip(*arguments: str) -> None:
    ran = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    expect(ran.returncode == 0, f"ip {' '.join(arguments)}: {ran.stderr}")


class Hosts:
    """Two namespaces that see each other and nothing else."""

    def __init__(self):
        self.spaces = [f"tessera{os.getpid()}{side}" for side in "ab"]
        # The names of interfaces are short.
        self.ends = [f"t{os.getpid()}{side}" for side in "ab"]
        self.addresses = ["10.77.0.1", "10.77.0.2"]

    def __enter__(self) -> "Hosts":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        for space in self.spaces:
            ip("netns", "add", space)
        first, second = self.spaces
        ip("-n", first, "link", "add", self.ends[0], "type", "veth", "peer", "name", self.ends[1], "netns", second)
        for space, end, address in zip(self.spaces, self.ends, self.addresses):
            ip("-n", space, "address", "add", f"{address}/24", "dev", end)
            ip("-n", space, "link", "set", "lo", "up")
        self.link("up")

    def link(self, state: str) -> None:
        for space, end in zip(self.spaces, self.ends):
            ip("-n", space, "link", "set", end, state)

    def stop(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space], stderr=subprocess.DEVNULL, check=False)

    def mpirun(self, folder: Folder, name: str, *overrides: str) -> Job:
        """A run with one rank on each host, started from the first."""
        agent = folder.path / "agent"
        cases = [f"    {address}) space={space} ;;" for space, address in zip(self.spaces, self.addresses)]
        agent.write_text(AGENT.format(cases="\n".join(cases)))
        agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
        settings = {
            "plm_rsh_agent": agent,
            "btl": "tcp,self",
            "btl_tcp_if_include": "10.77.0.0/24",
            "oob_tcp_if_include": "10.77.0.0/24",
            **KEEPALIVE,
        }
        mca = [word for key, value in settings.items() for word in ("--mca", key, str(value))]
        hosts = ",".join(f"{address}:1" for address in self.addresses)
        line = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "2", "--host", hosts, *mca, *training(name, *overrides)]
        first = self.spaces[0]
        return Job(folder, ["ip", "netns", "exec", first, "unshare", "--uts", "sh", "-c", f'hostname {first}; exec "$@"', "sh", *line])


def same_as_threads(folder: Folder) -> None:
    """two hosts over TCP: the bits of as many threads"""
    with Hosts() as hosts, hosts.mpirun(folder, "hosts", "training_duration=24ba") as job:
        first, second = (network(job.rank(rank)) for rank in range(2))
        expect(first != second, "both ranks run on one host")
        job.succeeds()
    folder.same_as_threads("hosts", 2, "training_duration=24ba")


def network(process: int) -> str:
    """The network that a process sees."""
    return os.readlink(f"/proc/{process}/ns/net")


def cut(folder: Folder) -> None:
    """the link is cut: ranks and mpirun end within the deadline + 5 s; when it is back the run goes on to the same weights"""
    with Hosts() as hosts:
        with hosts.mpirun(folder, "whole", *LONG) as job:
            job.succeeds()
        with hosts.mpirun(folder, "cut", *LONG) as job:
            job.trains("cut", 30)
            hosts.link("down")
            began = time.monotonic()
            code = job.ends_after_a_fault()
            print(f"     all had ended {time.monotonic() - began:.1f} s after the cut, mpirun with {code}")
            job.says(f"has not ended for {DEADLINE} s")
        folder.whole_checkpoints("cut")
        hosts.link("up")
        with hosts.mpirun(folder, "cut", *LONG) as job:
            job.succeeds()
    folder.same_run("cut", "whole")


def main() -> None:
    for tool in ("mpirun", "ip", "unshare"):
        expect(shutil.which(tool) is not None, f"{tool} is not installed")
    run_cases(same_as_threads, cut)


if __name__ == "__main__":
    main()
