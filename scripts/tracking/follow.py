"""Runs that are started, stopped and read back: what the cases of an MLflow server have in common."""

import atexit
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clusters"))

from mlflow import MlflowClient
from mlflow.entities import Run

from server import Server
from tiny import BINARY, Folder, conversation, expect

EXPERIMENT = "/Shared/sums"
LOSS = "loss/train/total"
LONG = ["training_duration=600ba", "save_interval=20ba", "save_num_checkpoints_to_keep=2"]


def keys(address: str, *further: str) -> list[str]:
    return [f"experiment_path={EXPERIMENT}", f"mlflow.tracking_uri={address}", "eval_data_path=eval.jsonl", *further]


STARTING = threading.Lock()


def server_of_all() -> Server:
    """The server of the cases that let it live: it takes longer to come up than a run to end."""
    with STARTING:
        return started_server()


@functools.cache
def started_server() -> Server:
    server = Server(Path(tempfile.mkdtemp(prefix="tessera-")))
    atexit.register(shutil.rmtree, server.folder.parent, ignore_errors=True)
    atexit.register(server.kill)
    server.start()
    return server


def start(folder: Folder, name: str, *overrides: str, **environment: str) -> subprocess.Popen:
    # Other rows than those of training: MLflow takes data sets of the same content for one.
    (folder.path / "eval.jsonl").write_text("".join(map(conversation, range(96, 104))))
    command = [BINARY, "train", "run.yaml", f"run_name={name}", *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder.path, env=os.environ | environment, **pipes)


def ended(process: subprocess.Popen, code: int) -> str:
    said, _ = process.communicate(timeout=300)
    expect(process.returncode == code, f"ended with {process.returncode}, not {code}: {said[-3000:]}")
    return said


def trained(folder: Folder, name: str, *overrides: str, code: int = 0, **environment: str) -> str:
    return ended(start(folder, name, *overrides, **environment), code)


def delivered(folder: Folder, name: str, said: str, *overrides: str) -> None:
    """Runs the same command again if that is what a run that ended before its server was up has asked for."""
    if "the same command delivers the rest" in said:
        trained(folder, name, *overrides)


def batches(folder: Folder, name: str) -> int:
    path = folder.run(name) / "metrics.jsonl"
    return path.read_text().count(LOSS) if path.exists() else 0


def wait_for_batches(folder: Folder, name: str, more: int) -> None:
    before, patience = batches(folder, name), time.monotonic() + 60
    while batches(folder, name) < before + more:
        expect(time.monotonic() < patience, f"{name} does not train")
        time.sleep(0.005)


def only_run(server: Server, name: str, status: str) -> tuple[MlflowClient, Run]:
    """The one run of this name, which must have ended so."""
    client = MlflowClient(server.address)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], f"tags.run_name = '{name}'")
    expect(len(runs) == 1, f"{name} is {len(runs)} runs")
    expect(runs[0].info.status == status, f"{name} is {runs[0].info.status}, not {status}")
    return client, runs[0]


def lines(folder: Folder, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder.run(name) / "metrics.jsonl").read_text().splitlines()]


def points_of(folder: Folder, name: str) -> dict[str, list[tuple[int, float]]]:
    """The curves in a run's `metrics.jsonl`. An evaluation's batch is its place, not a value of its own."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines(folder, name):
        for key, value in line.items():
            if LOSS in line or key != "time/batch":
                curves.setdefault(key, []).append((line["time/batch"], math.nan if value is None else value))
    expect(len(curves) > 20, f"only {len(curves)} metrics are compared")
    return curves


def holds_metrics(folder: Folder, name: str, server: Server, status: str = "FINISHED", *, exact: bool = True) -> Run:
    """Checks that the server has every value of the run's metrics once, at its step. The values that depend on the clock
    are those of the process that computed them first, so a run of several processes is compared without them."""
    client, run = only_run(server, name, status)
    for key, points in points_of(folder, name).items():
        found = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        found.sort(key=lambda point: point[0])
        points.sort(key=lambda point: point[0])
        expect([step for step, _ in found] == [step for step, _ in points], f"{key}: steps differ: {len(found)} of {len(points)}")
        if exact or not key.startswith(("throughput/", "time/train", "time/remaining")):
            same = all(a == b or (math.isnan(a) and math.isnan(b)) for (_, a), (_, b) in zip(found, points))
            expect(same, f"{key}: values differ")
    return run


def artifacts(client: MlflowClient, run: Run, folder: str = "") -> list[str]:
    """The names of all files below a folder."""
    names = []
    for entry in client.list_artifacts(run.info.run_id, folder or None):
        names += artifacts(client, run, entry.path) if entry.is_dir else [entry.path]
    return sorted(names)
