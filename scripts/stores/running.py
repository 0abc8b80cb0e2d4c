"""The binary at work on what is in a store: started, waited for, killed and gone on with."""

import functools
import os
import subprocess
import time

from store import BUCKET, SECRET, Door, Store
from tiny import BINARY, Folder, Wrong, expect


@functools.cache
def store() -> Store:
    """The store of the S3 protocol, which all cases share."""
    return Store()


def url(name: str) -> str:
    return f"s3://{BUCKET}/{name}"


def start(folder: Folder, door: Door, *arguments: str, **environment: str | None) -> subprocess.Popen:
    variables = os.environ | door.environment | environment
    variables = {name: value for name, value in variables.items() if value is not None}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([BINARY, *arguments], cwd=folder.path, env=variables, **pipes)


def ended(process: subprocess.Popen, code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    expect(process.returncode == code, f"ended with {process.returncode}, not {code}: {said[-3000:]}")
    expect(SECRET not in said, "a secret is printed")
    return said


def trained(folder: Folder, door: Door, name: str, *overrides: str, code: int = 0, **environment: str | None) -> str:
    return ended(start(folder, door, "train", "run.yaml", f"run_name={name}", *overrides, **environment), code)


def wait_for_checkpoint(place: Store, name: str, run: subprocess.Popen) -> None:
    """Waits until a run has one more at the store than it had."""
    patience, before = time.monotonic() + 90, place.names(name)
    while (names := place.names(name)) == before or not any("latest" in name for name in names):
        if run.poll() is not None:
            raise Wrong(f"no checkpoint came to {name}, and the run has ended: {run.stdout.read()[-3000:]}")
        expect(time.monotonic() < patience, f"waited in vain for a checkpoint in {name}")
        time.sleep(0.02)


def has(words: str, *parts: str) -> None:
    for part in parts:
        expect(part in words, f"{part!r} is not in: {words}")


def moves_on(place: Store, name: str, machines: list[Folder], *overrides: str, last: tuple[str, ...] = ()) -> Door:
    """A run that is killed on each machine but the last, once it has got something more to the store, and goes on on the next; on
    the last with further overrides."""
    door, run = Door(place), f"{name}/moving"
    overrides = (f"save_folder={place.url(name)}", *overrides)
    for machine in machines[:-1]:
        process = start(machine, door, "train", "run.yaml", "run_name=moving", *overrides)
        wait_for_checkpoint(place, run, process)
        process.kill()
        process.communicate()
        expect(process.returncode == -9, f"ended by itself with {process.returncode}")
    has(trained(machines[-1], door, "moving", *overrides, *last), "Going on from")
    return door
