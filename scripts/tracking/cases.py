#!/usr/bin/env python3
"""What an MLflow server and TensorBoard know of a run, read back with their own readers. `scripts/test-mlflow` starts it."""

import atexit
import functools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clusters"))

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import run_cases
from server import Hub, Proxy, Server, free_port
from tiny import BINARY, Folder, conversation, expect

EXPERIMENT = "/Shared/sums"
LOSS = "loss/train/total"
LONG = ["training_duration=600ba", "save_interval=20ba", "save_num_checkpoints_to_keep=2"]
KILLS = 6


def keys(address: str, *further: str) -> list[str]:
    return [f"experiment_path={EXPERIMENT}", f"mlflow.tracking_uri={address}", "eval_data_path=eval.jsonl", *further]


@functools.cache
def server_of_all() -> Server:
    """The server of the cases that let it live: it takes longer to come up than a run to end."""
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


def whole_run(folder: Folder) -> None:
    """a run is there with its parameters, metrics by step, data sets, tags, report, links and end; another joins its experiment"""
    server = server_of_all()
    said = trained(folder, "whole", *keys(server.address))
    run = holds_metrics(folder, "whole", server)
    client = MlflowClient(server.address)
    expect(f"{server.address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in said, said)
    parameters = {"learning_rate": "0.01", "optimizer.name": "adamw", "seed": "17", "plan.batches": "6", "eval_prompts": "[]"}
    for key, value in parameters.items():
        expect(run.data.params.get(key) == value, f"{key} is {run.data.params.get(key)}, not {value}")
    written = (folder.run("whole") / "run.yaml").read_text()
    keys_written = [line.split(":")[0] for line in written.splitlines() if line and line[0].isalpha()]
    missing = [key for key in keys_written if not any(name.split(".")[0] == key for name in run.data.params)]
    expect(not missing and len(keys_written) > 40, f"parameters lack {missing}")
    expect(run.info.run_name == "whole" and run.data.tags["mlflow.source.name"] == "tessera", str(run.data.tags))
    contexts = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    expect(sorted(contexts) == ["eval", "train"], str(contexts))
    expect(json.loads(contexts["train"].profile)["num_rows"] == 96, contexts["train"].profile)
    expect(json.loads(contexts["train"].source)["uri"] == "train.jsonl", contexts["train"].source)
    expect(artifacts(client, run) == ["events.jsonl", "generations.jsonl", "report.html", "run.yaml"], str(artifacts(client, run)))
    report = client.download_artifacts(run.info.run_id, "report.html", folder.path)
    expect(Path(report).read_bytes() == (folder.run("whole") / "report.html").read_bytes(), "another report")
    for tag, place in (("checkpoint", "checkpoints/ep1-ba6"), ("model", "huggingface/ba6"), ("run_folder", "")):
        path = Path(run.data.tags[f"tessera.{tag}"])
        expect(path == folder.run("whole") / place and path.is_dir(), str(path))
    expect("system/system_memory_usage_percentage" in run.data.metrics, "no system metrics")
    expect(run.info.end_time >= run.info.start_time, "it ended before it began")
    trained(folder, "second", *keys(server.address, "mlflow.system_metrics=false"))
    second = holds_metrics(folder, "second", server)
    expect(second.info.experiment_id == run.info.experiment_id, "another experiment")
    expect(not any(key.startswith("system/") for key in second.data.metrics), "system metrics that nobody wants")
    # A finished run that is started again changes nothing.
    trained(folder, "whole", *keys(server.address))
    expect(only_run(server, "whole", "FINISHED")[1].info.end_time == run.info.end_time, "it ended again")


def uploads(folder: Folder) -> None:
    """checkpoints and the model are copied where that is asked for, byte for byte"""
    server = server_of_all()
    trained(folder, "copied", *keys(server.address, "mlflow.artifacts=upload", "save_interval=3ba"))
    run = holds_metrics(folder, "copied", server)
    client = MlflowClient(server.address)
    names = artifacts(client, run)
    for place in ("checkpoints/ep0-ba3/.metadata", "checkpoints/ep1-ba6/__0_0.distcp", "huggingface/ba6/model.safetensors"):
        expect(f"copied/{place}" in names, f"{place} is not in {names}")
        copy = client.download_artifacts(run.info.run_id, f"copied/{place}", folder.path)
        expect(Path(copy).read_bytes() == (folder.run("copied") / place).read_bytes(), f"{place} is another")


def versions(server: Server, name: str) -> list[ModelVersion]:
    return MlflowClient(server.address).search_model_versions(f"name = '{name}'")


def only_version(folder: Folder, name: str, server: Server, registered: str) -> ModelVersion:
    """The one version of a registered model, which must be of the one run of this name, and hold its last model."""
    client, run = only_run(server, name, "FINISHED")
    found = versions(server, registered)
    expect(len(found) == 1, f"{registered} has {len(found)} versions")
    [version] = found
    expect(version.status == "READY" and version.run_id == run.info.run_id, str(version))
    expect(run.data.tags["tessera.registered_model"] == f"{registered}/{version.version}", str(run.data.tags))
    expect(version.tags["run_name"] == name, str(version.tags))
    completed = json.loads((folder.run(name) / "events.jsonl").read_text().splitlines()[-1])
    expect(completed["type"] == "COMPLETED" and registered in completed["registered"], str(completed))
    return version


def registered(folder: Folder) -> None:
    """the model is registered once as a version that MLflow downloads, in its flavour, under the run's name or another"""
    server = server_of_all()
    named = keys(server.address, "register_to=main.models")
    said = trained(folder, "registered", *named)
    expect(f"Registered as version 1 of main.models.registered at {server.address}" in said, said)
    only_version(folder, "registered", server, "main.models.registered")
    mlflow.set_tracking_uri(server.address)
    copy = Path(mlflow.artifacts.download_artifacts("models:/main.models.registered/1", dst_path=str(folder.path)))
    model = folder.run("registered") / "huggingface/ba6"
    for file in model.iterdir():
        expect((copy / file.name).read_bytes() == file.read_bytes(), f"{file.name} is another")
    # What `mlflow.transformers.load_model` reads of it.
    flavour = Model.load(copy).flavors["transformers"]
    expect(flavour["pipeline_model_type"] == "LlamaForCausalLM" and flavour["task"] == "text-generation", str(flavour))
    tokenizer = copy / "components/tokenizer/tokenizer.json"
    expect((copy / flavour["model_binary"] / "config.json").is_file() and tokenizer.is_file(), str(list(copy.iterdir())))
    # Again, under the same name and under another: nothing is trained.
    before = batches(folder, "registered")
    for name in ("main.models", "main.models.other"):
        said = trained(folder, "registered", *keys(server.address, f"register_to={name}"))
        expect("This run is finished" in said and batches(folder, "registered") == before, said)
    expect(len(versions(server, "main.models.registered")) == 1, "it is registered twice")
    only_version(folder, "registered", server, "main.models.other")


def registry_killed(folder: Folder) -> None:
    """a server that is away at the end leaves the run whole but not registered; the same command registers it"""
    server = Server(folder.path)
    with server:
        register = keys(server.address, *LONG, "register_to=main.models")
        run = start(folder, "unregistered", *register)
        wait_for_batches(folder, "unregistered", 60)
        server.kill()
        said = ended(run, 4)
        expect("is not registered as main.models: the MLflow server at" in said and "The same command" in said, said)
        model = folder.run("unregistered") / "huggingface/ba600/model.safetensors"
        before = model.read_bytes()
        server.start()
        said = trained(folder, "unregistered", *register)
        expect("This run is finished" in said and model.read_bytes() == before, said)
        only_version(folder, "unregistered", server, "main.models.unregistered")
        holds_metrics(folder, "unregistered", server)


def refused_registry(folder: Folder) -> None:
    """a registry that is away, refuses, or is none is told before anything is tokenised"""
    server = server_of_all()
    nobody = f"http://127.0.0.1:{free_port()}"
    refused = [
        (["register_to=main.models.m", f"mlflow.registry_uri={nobody}"], 4, nobody),
        (["register_to=main.models.m", "mlflow.registry_uri=databricks-uc"], 2, "DATABRICKS_"),
        (["register_to=main.models.m", f"mlflow.registry_uri={Proxy(server, token='t').address}"], 2, "MLFLOW_TRACKING_TOKEN"),
        (["register_to=main.mod/els"], 2, "catalog.schema.model"),
    ]
    for overrides, code, part in refused:
        said = trained(folder, "refused", *keys(server.address, *overrides), code=code, DATABRICKS_TOKEN="")
        expect(part in said, said)
    said = trained(folder, "refused", "register_to=main.models", code=2)
    expect("experiment_path beside it" in said, said)
    expect(not (folder.path / "runs/.cache").exists(), "data was tokenised")


def put_on_the_hub(folder: Folder) -> None:
    """the model is put on the hub as one commit, by a token that may; a token that may not is refused before the run"""
    hub = Hub("wr1te")
    hub_is = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder.path / "hf")}
    said = trained(folder, "hub", "register_to=hf://org/sums", code=2, HF_TOKEN="r3ad", **hub_is)
    expect("org/sums on the Hugging Face hub" in said and "set HF_TOKEN" in said and "r3ad" not in said, said)
    expect(not (folder.path / "runs/.cache").exists(), "data was tokenised")
    for words in ("Registered as commit", "This run is finished"):
        said = trained(folder, "hub", "register_to=hf://org/sums", HF_TOKEN="wr1te", **hub_is)
        expect(words in said and f"{hub.address}/org/sums" in said, said)
    expect(hub.repositories[0] == {"name": "sums", "private": True, "type": "model", "organization": "org"}, str(hub.repositories))
    expect(len(hub.commits) == 1, f"{len(hub.commits)} commits")
    [commit] = hub.commits
    expect(commit["title"].startswith("Tessera run hub, batch 6 (") and "/org/sums/commit/main" in commit["path"], commit["title"])
    model = {file.name: file.read_bytes() for file in (folder.run("hub") / "huggingface/ba6").iterdir()}
    expect(commit["files"] == model, f"{sorted(commit['files'])} is not {sorted(model)}")


def stopped_and_failed(folder: Folder) -> None:
    """a stopped run is KILLED and the same run when it goes on; one whose loss is no number is FAILED, with NaN"""
    server = server_of_all()
    run = start(folder, "stopped", *keys(server.address, *LONG))
    wait_for_batches(folder, "stopped", 40)
    run.send_signal(signal.SIGTERM)
    ended(run, 143)
    before = holds_metrics(folder, "stopped", server, "KILLED")
    trained(folder, "stopped", *keys(server.address, *LONG, "eval_interval=50ba"))
    after = holds_metrics(folder, "stopped", server, exact=False)
    expect(before.info.run_id == after.info.run_id, "another run")
    trained(folder, "failed", *keys(server.address, "learning_rate=1e30", "max_grad_norm=1e30"), code=2)
    failed = holds_metrics(folder, "failed", server, "FAILED")
    numbers = [value for line in lines(folder, "failed") for value in line.values()]
    expect(failed.info.end_time is not None and None in numbers, "every number was finite")


def run_killed(folder: Folder) -> None:
    """a run killed several times at random moments is one run that has every step once"""
    moments = random.Random(17)
    server = server_of_all()
    # Several times as many batches as are done before the last kill.
    longer = [*LONG, "training_duration=1500ba"]
    for _ in range(KILLS):
        run = start(folder, "killed", *keys(server.address, *longer))
        wait_for_batches(folder, "killed", 1)
        time.sleep(moments.random() / 3)
        expect(run.poll() is None, "the run was over before it was killed")
        run.kill()
        run.communicate()
    trained(folder, "killed", *keys(server.address, *longer))
    holds_metrics(folder, "killed", server, exact=False)


def server_killed(folder: Folder) -> None:
    """a server killed in the middle of a run and started again has every step once; the run goes on meanwhile"""
    server = Server(folder.path)
    with server:
        run = start(folder, "during", *keys(server.address, *LONG))
        wait_for_batches(folder, "during", 60)
        server.kill()
        wait_for_batches(folder, "during", 100)
        server.start()
        said = ended(run, 0)
        expect("cannot be reached" in said, f"nobody said that the server was away: {said}")
        delivered(folder, "during", said, *keys(server.address, *LONG))
        holds_metrics(folder, "during", server)


def server_gone(folder: Folder) -> None:
    """a server that does not come back costs the run nothing but a warning; the same command delivers the rest"""
    server = Server(folder.path)
    with server:
        run = start(folder, "left", *keys(server.address, *LONG))
        wait_for_batches(folder, "left", 60)
        server.kill()
        said = ended(run, 0)
        expect("Done: 600 batches." in said and "the same command delivers the rest" in said, said)
        server.start()
        only_run(server, "left", "RUNNING")
        said = trained(folder, "left", *keys(server.address, *LONG))
        expect("This run is finished" in said, said)
        holds_metrics(folder, "left", server)


def away_at_start(folder: Folder) -> None:
    """a server that is away at the start ends the run, or is told later, as the run file says"""
    server = Server(folder.path)
    said = trained(folder, "away", *keys(server.address), code=4)
    expect(f"the MLflow server at {server.address} cannot be reached" in said, said)
    buffer = keys(server.address, *LONG, "mlflow.unreachable=buffer")
    run = start(folder, "away", *buffer)
    wait_for_batches(folder, "away", 100)
    with server:
        said = ended(run, 0)
        expect("the run is told to it when it is there" in said, said)
        delivered(folder, "away", said, *buffer)
        holds_metrics(folder, "away", server)


def answers_lost(folder: Folder) -> None:
    """a server that answers 500 to two of three requests, having done what one of them asked, has everything once"""
    server = server_of_all()
    proxy = Proxy(server, loses=True)
    buffer = ["mlflow.unreachable=buffer", "mlflow.artifacts=upload", "training_duration=200ba", "save_interval=100ba"]
    buffer.append("register_to=main.models")
    said = trained(folder, "lossy", *keys(proxy.address, *buffer))
    delivered(folder, "lossy", said, *keys(proxy.address, *buffer))
    expect(len(versions(server, "main.models.lossy")) == 1, "not one version")
    expect(proxy.lost > 20, f"only {proxy.lost} answers were lost")
    holds_metrics(folder, "lossy", server)


def credentials(folder: Folder) -> None:
    """credentials that are missing, wrong or given in the run file are refused by name and never shown"""
    secret = "s3cr3t-t0k3n"
    server = server_of_all()
    proxy = Proxy(server, token=secret)
    said = trained(folder, "secret", *keys(proxy.address, "mlflow.unreachable=buffer"), code=2)
    expect("no credentials were sent; set MLFLOW_TRACKING_TOKEN" in said, said)
    said = trained(folder, "secret", *keys(proxy.address), code=2, MLFLOW_TRACKING_TOKEN="wr0ng")
    expect("it does not take MLFLOW_TRACKING_TOKEN" in said and "wr0ng" not in said, said)
    inside = proxy.address.replace("//", f"//me:{secret}@")
    said = trained(folder, "inside", *keys(inside), code=2)
    expect("MLFLOW_TRACKING_PASSWORD" in said and secret not in said, said)
    said = trained(folder, "secret", *keys(proxy.address), MLFLOW_TRACKING_TOKEN=secret)
    expect(secret not in said, said)
    holds_metrics(folder, "secret", server)
    for path in filter(Path.is_file, (folder.path / "runs").rglob("*")):
        content = path.read_bytes()
        expect(secret.encode() not in content and b"wr0ng" not in content, f"{path} holds a secret")
    without = [f"experiment_path={EXPERIMENT}"]
    said = trained(folder, "nowhere", *without, code=2, MLFLOW_TRACKING_URI="")
    expect("MLFLOW_TRACKING_URI, or mlflow.tracking_uri" in said, said)
    said = trained(folder, "nowhere", "mlflow.tracking_uri=http://a", code=2)
    expect("experiment_path" in said, said)
    trained(folder, "variable", *without, MLFLOW_TRACKING_URI=server.address)
    only_run(server, "variable", "FINISHED")
    expect(server.address not in (folder.run("variable") / "run.yaml").read_text(), "run.yaml keeps the environment")


def refused_experiment(folder: Folder) -> None:
    """an experiment that was deleted on the server is refused before anything is tokenised"""
    server = server_of_all()
    client = MlflowClient(server.address)
    client.delete_experiment(client.create_experiment("/Shared/gone"))
    said = trained(folder, "deleted", *keys(server.address), "experiment_path=/Shared/gone", code=2)
    expect("/Shared/gone" in said and "is deleted; restore it" in said, said)
    expect(not (folder.path / "runs/.cache").exists(), "data was tokenised")


def tensorboard(folder: Folder) -> None:
    """TensorBoard has every step of a stopped and resumed run once, as metrics.jsonl has it"""
    length = ["training_duration=300ba", "save_interval=20ba", "eval_data_path=eval.jsonl", "tensorboard=true"]
    run = start(folder, "events", *length)
    wait_for_batches(folder, "events", 50)
    run.kill()
    run.communicate()
    trained(folder, "events", *length)
    expect(len(list((folder.run("events") / "tensorboard").iterdir())) == 2, "not one file for each process")
    reader = EventAccumulator(str(folder.run("events") / "tensorboard"), {"scalars": 0})
    reader.Reload()
    wanted = points_of(folder, "events")
    expect(sorted(reader.Tags()["scalars"]) == sorted(wanted), str(reader.Tags()["scalars"]))
    for key, points in wanted.items():
        found = [(event.step, event.value) for event in reader.Scalars(key)]
        expect([step for step, _ in found] == [step for step, _ in points], f"{key}: steps differ")
        close = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-30) for (_, a), (_, b) in zip(found, points))
        expect(close, f"{key}: values differ")


if __name__ == "__main__":
    run_cases(
        whole_run,
        uploads,
        registered,
        put_on_the_hub,
        registry_killed,
        refused_registry,
        stopped_and_failed,
        run_killed,
        server_killed,
        server_gone,
        away_at_start,
        answers_lost,
        credentials,
        refused_experiment,
        tensorboard,
    )
