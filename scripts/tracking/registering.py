"""Models that are registered at the end of a run: in an MLflow server's registry, and on a hub."""

import json
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

from follow import EXPERIMENT, LONG, batches, ended, holds_metrics, keys, only_run, server_of_all, start, trained, wait_for_batches
from server import Hub, Proxy, Server, free_port
from tiny import Folder, conversation, expect


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
    (folder.path / "eval.jsonl").write_text("".join(map(conversation, range(96, 104))))
    said = folder.tessera("validate", "run.yaml", "run_name=registered", *named)
    for services in (f"MLflow at {server.address} ", "make the registered model main.models.registered when it starts"):
        expect(services in said, said)
    looked = MlflowClient(server.address).search_registered_models("name = 'main.models.registered'")
    expect(len(looked) == 0, "a look has made the model")
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
        (["register_to=main.models.m", "mlflow.registry_uri=databricks-uc"], 2, "DATABRICKS_HOST"),
        (["register_to=main.models.m", "mlflow.registry_uri=databricks"], 2, "write databricks-uc"),
        (["register_to=main.models.m", f"mlflow.registry_uri={Proxy(server, token='t').address}"], 2, "MLFLOW_TRACKING_TOKEN"),
        (["register_to=main.mod/els"], 2, "catalog.schema.model"),
    ]
    for overrides, code, part in refused:
        said = trained(folder, "refused", *keys(server.address, *overrides), code=code)
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
