#!/usr/bin/env python3
"""What an MLflow server and TensorBoard know of a run, read back with their own readers. `scripts/test-mlflow` starts it."""

import json
import math
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cataloguing import catalog_fails, in_catalog, store_shut, version_deleted, workspace
from follow import EXPERIMENT, LONG, LOSS, artifacts, delivered, ended, holds_metrics, keys, lines, only_run, points_of
from follow import server_of_all, start, trained, wait_for_batches
from jobs import run_cases
from registering import put_on_the_hub, refused_registry, registered, registry_killed, versions
from server import Proxy, Server
from tiny import BINARY, Folder, conversation, expect

KILLS = 6


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


def disk_full(folder: Folder) -> None:
    """a disk that is full in the middle ends the run; with room again the server has every step once"""
    server = server_of_all()
    overrides = keys(server.address, *LONG)
    (folder.path / "eval.jsonl").write_text("".join(map(conversation, range(96, 104))))
    (folder.path / "runs").mkdir()
    train = " ".join([BINARY, "train", "run.yaml", "run_name=full", *overrides])
    script = f"""mount -t tmpfs -o size=8m none runs || exit 99
        {train} & run=$!
        while [ "$(grep -c {LOSS} runs/full/metrics.jsonl 2>/dev/null || true)" -lt 60 ] 2>/dev/null; do sleep 0.05; done
        cat /dev/zero > runs/ballast
        wait $run; echo "first: $?"
        rm runs/ballast
        {train}; echo "second: $?"
        cp -r runs/full kept"""
    command = ["unshare", "-rm", "sh", "-c", script]
    ran = subprocess.run(command, cwd=folder.path, capture_output=True, text=True, timeout=120, check=False)
    expect("first: 3" in ran.stdout and "second: 0" in ran.stdout, f"{ran.stdout}{ran.stderr}")
    (folder.path / "kept").rename(folder.run("full"))
    holds_metrics(folder, "full", server, exact=False)


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


def has_namespaces() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    # The small disk is mounted in namespaces of its own, which not every system allows.
    small_disk = [disk_full] if has_namespaces() else []
    if not small_disk:
        print("no namespaces here: disk_full is left out", flush=True)
    run_cases(
        # Those that wait longest come first.
        server_killed,
        store_shut,
        registry_killed,
        server_gone,
        *small_disk,
        away_at_start,
        whole_run,
        uploads,
        registered,
        in_catalog,
        catalog_fails,
        version_deleted,
        workspace,
        put_on_the_hub,
        refused_registry,
        stopped_and_failed,
        run_killed,
        answers_lost,
        credentials,
        refused_experiment,
        tensorboard,
        # They mostly wait: for servers that start, and runs that wait for servers.
        beside=3,
    )
