"""Models that are registered in Unity Catalog, which a small server of our own plays, and runs that are tracked by its workspace."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stores"))

from mlflow import MlflowClient
from mlflow.models import Model

from follow import EXPERIMENT, STARTING, ended, holds_metrics, keys, only_run, server_of_all, start, trained
from store import BUCKET, Door, Store
from tiny import Folder, conversation, expect
from unity_catalog import KEYS, TOKEN, WORKSPACE, Catalog


@functools.cache
def started_store() -> Store:
    return Store()


def store_of_all() -> Store:
    with STARTING:
        return started_store()


def catalogued(folder: Folder, name: str, catalog: Catalog, door: Door, *further: str, code: int = 0) -> str:
    overrides = keys(server_of_all().address, "mlflow.registry_uri=databricks-uc", *further)
    return trained(folder, name, *overrides, code=code, **door.environment, **catalog.environment)


def holds_version(folder: Folder, name: str, catalog: Catalog, registered: str) -> dict:
    """The one version of a registered model, which must be ready and have the last model of the run of this name."""
    found = [version for version in catalog.versions if version["name"] == registered]
    expect([version["status"] for version in found] == ["READY"], str(found))
    model = folder.run(name) / "huggingface/ba6"
    wanted = {file.name: file.read_bytes() for file in model.iterdir()}
    place = found[0]["storage_location"].removeprefix(f"s3://{BUCKET}/")
    there = store_of_all().names(place)
    for file, content in wanted.items():
        expect(file in there and store_of_all().get(f"{place}/{file}") == content, f"{file} is another, or not there: {there}")
    expect(set(there) - set(wanted) == {"MLmodel", "requirements.txt"} | {it for it in there if "components/" in it}, str(there))
    client, run = only_run(server_of_all(), name, "FINISHED")
    expect(run.data.tags["tessera.registered_model"] == f"{registered}/1", str(run.data.tags))
    expect(found[0]["run_id"] == run.info.run_id, str(found))
    # The server of the runs gets no copy.
    expect(not any(entry.is_dir for entry in client.list_artifacts(run.info.run_id)), "the model was copied to the server too")
    return found[0]


def in_catalog(folder: Folder) -> None:
    """a model is registered in Unity Catalog once, by the requests of MLflow's own client; a look changes nothing there"""
    store = store_of_all()
    door, catalog = Door(store), Catalog(BUCKET, server_of_all())
    register = "register_to=main.models.sums"
    (folder.path / "eval.jsonl").write_text("".join(map(conversation, range(96, 104))))
    look = keys(server_of_all().address, "mlflow.registry_uri=databricks-uc", register)
    said = folder.tessera("validate", "run.yaml", *look, **catalog.environment)
    expect("the run will make the registered model main.models.sums when it starts" in said, said)
    expect(not catalog.models and {method for method, *_ in catalog.asked} == {"GET"}, str(catalog.asked))
    said = catalogued(folder, "ours", catalog, door, register)
    expect(f"Registered as version 1 of main.models.sums at {catalog.environment['DATABRICKS_HOST']}" in said, said)
    version = holds_version(folder, "ours", catalog, "main.models.sums")
    expect(door.tokens == {KEYS["session_token"]}, f"the store is not asked by what the catalog hands out: {door.tokens}")
    asked = [call for _, call, _ in catalog.asked]
    expect(asked.count("model-versions/create") == asked.count("model-versions/finalize") == 1, str(asked))
    said = catalogued(folder, "ours", catalog, door, register)
    expect("This run is finished" in said and len(catalog.versions) == 1, said)
    for path in filter(Path.is_file, folder.run("ours").rglob("*")):
        secrets = [TOKEN, KEYS["secret_access_key"], KEYS["session_token"]]
        expect(not any(secret.encode() in path.read_bytes() for secret in secrets), f"{path} holds a secret")
    # The same by MLflow's client, of the files that ours has put there.
    copy = folder.path / "copy"
    store.download("main.models.sums/1", copy)
    signature = Model.load(copy).signature
    expect(signature.inputs is not None and signature.outputs is not None, "no signature")
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    command = [sys.executable, Path(__file__).with_name("unity_catalog.py"), "main.models.theirs", version["source"], version["run_id"]]
    command += [version["description"], json.dumps(tags), copy]
    address = {"MLFLOW_S3_ENDPOINT_URL": door.environment["AWS_ENDPOINT_URL"], "TRACKING": server_of_all().address}
    subprocess.run(command, check=True, env=os.environ | door.environment | catalog.environment | address, timeout=120)
    calls = ("registered-models/create", "model-versions/create", "model-versions/generate-temporary-credentials", "model-versions/finalize")
    ours, theirs = ([shape(it) for it in catalog.calls(*calls) if it[2]["name"] == f"main.models.{whose}"] for whose in ("sums", "theirs"))
    expect(ours == theirs, f"{ours}\nis not what MLflow asks:\n{theirs}")
    expect(store.names("main.models.theirs/1") == store.names("main.models.sums/1"), "MLflow puts other files there")


def shape(asked: tuple[str, str, dict]) -> tuple:
    """A request without what differs from model to model; what is empty is not there."""
    method, call, given = asked
    return method, call, {key: value for key, value in given.items() if key != "name" and value not in ("", [])}


def catalog_fails(folder: Folder) -> None:
    """a store that refuses or loses files, credentials that expire, answers that are lost: no version is ready that lacks a file, and one is in the end"""
    catalog, door = Catalog(BUCKET, server_of_all()), Door(store_of_all())
    register = "register_to=main.broken"
    door.answer = (403, "AccessDenied")
    said = catalogued(folder, "broken", catalog, door, register, code=2)
    expect("is not registered as main.broken" in said and "access is not permitted" in said, said)
    expect([version["status"] for version in catalog.versions] == ["PENDING_REGISTRATION"], str(catalog.versions))
    catalog.storage_mode, door.answer = "DEFAULT_STORAGE", None
    said = catalogued(folder, "broken", catalog, door, register, code=2)
    expect("DEFAULT_STORAGE" in said and "register elsewhere" in said, said)
    catalog.storage_mode, door.answer, catalog.loses = "CUSTOMER_HOSTED", (400, "ExpiredToken"), "model-versions/finalize"
    before = len(catalog.calls("model-versions/generate-temporary-credentials"))
    heal = functools.partial(setattr, door, "answer", None)
    after(2, lambda: len(catalog.calls("model-versions/generate-temporary-credentials")) - before, heal)
    said = catalogued(folder, "broken", catalog, door, register)
    expect("This run is finished" in said, said)
    holds_version(folder, "broken", catalog, "main.broken.broken")
    catalog.loses, door.drops = "model-versions/create", 2
    catalogued(folder, "broken", catalog, door, "register_to=main.broken.again")
    expect(door.drops == 0, "nothing was dropped")
    holds_version(folder, "broken", catalog, "main.broken.again")
    said = catalogued(folder, "broken", catalog, door, "register_to=main.x", "mlflow.registry_uri=databricks-uc://me", code=2)
    expect("names the profile me" in said, said)


def version_deleted(folder: Folder) -> None:
    """a half-made version that is deleted in the catalog is made anew with all its files, in the same folder or in another"""
    store, catalog = store_of_all(), Catalog(BUCKET, server_of_all())
    door = Door(store)
    for name, suffix in (("stayed", ""), ("moved", "-anew")):
        registered = f"main.deleted.{name}"
        catalog.refuses = "model-versions/finalize"
        said = catalogued(folder, name, catalog, door, f"register_to={registered}", code=2)
        expect(f"is not registered as {registered}" in said and "not now" in said, said)
        expect([version["status"] for version in catalog.versions] == ["PENDING_REGISTRATION"], str(catalog.versions))
        # As the catalog does, with the files.
        catalog.versions.clear()
        for file in store.names(f"{registered}/1"):
            store.client.delete_object(Bucket=BUCKET, Key=f"{registered}/1/{file}")
        catalog.refuses, catalog.suffix = None, suffix
        catalogued(folder, name, catalog, door, f"register_to={registered}")
        holds_version(folder, name, catalog, registered)
        catalog.versions.clear()


def store_shut(folder: Folder) -> None:
    """a run that waits for a store that stays away ends by a signal, a cancel, or itself; the same command registers later, by credentials for a minute"""
    catalog, door = Catalog(BUCKET, server_of_all()), Door(store_of_all())
    catalog.lasts, door.shut = 60, True
    overrides = keys(server_of_all().address, "mlflow.registry_uri=databricks-uc", "register_to=main.shut")

    def asked() -> int:
        return len(catalog.calls("model-versions/generate-temporary-credentials"))

    def signaled(run: subprocess.Popen) -> None:
        run.send_signal(signal.SIGTERM)

    def canceled(_: subprocess.Popen) -> None:
        folder.tessera("runs", "cancel", "shut")

    for stop in (signaled, canceled):
        before, run = asked(), start(folder, "shut", *overrides, **door.environment, **catalog.environment)
        while asked() == before:
            expect(run.poll() is None, "it ended before it registered")
            time.sleep(0.05)
        stop(run)
        said = ended(run, 143)
        expect("after the last batch: everything is saved here" in said, said)
    since = time.monotonic()
    said = catalogued(folder, "shut", catalog, door, "register_to=main.shut", code=4)
    took = time.monotonic() - since
    expect("is not registered as main.shut" in said and "does not answer as it should" in said, said)
    expect(took < 100, f"it took {took:.0f} s")
    door.shut = False
    catalogued(folder, "shut", catalog, door, "register_to=main.shut")
    holds_version(folder, "shut", catalog, "main.shut.shut")


def after(times: int, count: Callable[[], int], then: Callable[[], None]) -> None:
    """Does something once `count` says that it has happened so often."""

    def watch() -> None:
        while count() < times:
            time.sleep(0.05)
        then()

    threading.Thread(target=watch, daemon=True).start()


def workspace(folder: Folder) -> None:
    """a workspace is told of a run as any server, and its models go into its catalog, with the workspace named; its token is asked for"""
    server = server_of_all()
    catalog, door = Catalog(BUCKET, server), Door(store_of_all())
    environment = door.environment
    tracked = [f"experiment_path={EXPERIMENT}", "eval_data_path=eval.jsonl", "mlflow.tracking_uri=databricks"]
    said = trained(folder, "workspace", *tracked, code=2, **environment, DATABRICKS_HOST="http://127.0.0.1:1", DATABRICKS_TOKEN="")
    expect("DATABRICKS_TOKEN" in said, said)
    wrong = environment | catalog.environment | {"DATABRICKS_TOKEN": "wr0ng"}
    said = trained(folder, "workspace", *tracked, code=2, **wrong)
    expect("it does not take DATABRICKS_TOKEN" in said and "wr0ng" not in said, said)
    trained(folder, "workspace", *tracked, "register_to=main.at_work.sums", **environment, **catalog.environment)
    holds_metrics(folder, "workspace", server)
    version = holds_version(folder, "workspace", catalog, "main.at_work.sums")
    expect(version["run_tracking_server_id"] == WORKSPACE, str(version))
    expect(MlflowClient(server.address).get_run(version["run_id"]).info.artifact_uri in version["source"], version["source"])
