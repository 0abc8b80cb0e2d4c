#!/usr/bin/env python3
"""Runs that read from and write to an object store. `scripts/test-stores` starts it."""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clusters"))

from blobs import Azure
from jobs import run_cases
from running import ended, has, moves_on, start, store, trained, url, wait_for_checkpoint
from store import BUCKET, NOBODY, SECRET, Door, Google, Store
from tables import catalog, delta, escapes
from tiny import Folder, conversation, expect

LONG = ["training_duration=400ba", "save_interval=20ba"]
# The last checkpoint of such a run, which has 6 batches an epoch.
LAST = "ep66-ba400"
# A model whose checkpoints are uploaded in parts, and a run of it; 48 batches are an epoch.
LARGE = {"vocab_size": 20000, "hidden_size": 96}
PARTS = ["global_train_batch_size=2", "training_duration=60ba", "save_interval=6ba", "save_num_checkpoints_to_keep=2"]
TORCH = """
import sys
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
state = {}
_load_state_dict(state, FileSystemReader(sys.argv[1]), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
print(state["state"]["timestamp"]["Timestamp"]["batch"], len(state["state"]["model"]))
"""


def data(folder: Folder) -> None:
    """a file, a folder and a pattern give the numbers of local files, and are fetched once; a change is refused with both versions"""
    door, rows = Door(store()), (folder.path / "train.jsonl").read_text().splitlines(keepends=True)
    (folder.path / "parts/more").mkdir(parents=True)
    parts = {"b.jsonl": rows[:30], "a.jsonl": rows[30:50], "more/c.jsonl": rows[50:], "_skipped.jsonl": rows[:3], "notes.md": rows[:1]}
    for name, lines in parts.items():
        (folder.path / "parts" / name).write_text("".join(lines))
    store().put_folder("data/parts", folder.path / "parts")
    store().put("data/parts-beside/x.jsonl", "".join(rows[:5]).encode())
    store().put("data/train.jsonl", "".join(rows).encode())
    pairs = {"file": ("train.jsonl", "data/train.jsonl"), "folder": ("parts", "data/parts"), "pattern": ("parts/[ab]*.jsonl", "data/parts/[ab]*.jsonl")}
    for name, (local, remote) in pairs.items():
        folder.train(f"local-{name}", f"train_data_path={local}")
        trained(folder, door, name, f"train_data_path={url(remote)}")
        folder.same_run(name, f"local-{name}")
    fetched = [asked for asked in door.asked if asked.startswith("GET") and ".jsonl" in asked]
    # The pattern's files are two of the folder's.
    expect(len(fetched) == 4, f"not one request for each file: {fetched}")
    trained(folder, door, "again", f"train_data_path={url('data/parts')}")
    expect(len([asked for asked in door.asked if asked.startswith("GET") and ".jsonl" in asked]) == 4, "fetched again")
    pin = json.loads((folder.run("file") / "data.json").read_text())["train"][0]
    expect(pin["path"] == url("data/train.jsonl") and len(pin["version"]) == 32, str(pin))

    store().put("data/train.jsonl", "".join(rows[1:]).encode())
    said = trained(folder, door, "file", f"train_data_path={url('data/train.jsonl')}", "training_duration=1ep", code=2)
    has(said, f"was trained on {url('data/train.jsonl')} (version {pin['version']}", "but now this is", "restore the source")
    expect(len(set(re.findall(r"version (\w{32})", said))) == 2, said)


def side_by_side(folder: Folder) -> None:
    """processes that fetch the same file at once fetch it once, and none reads half of it"""
    door = Door(store())
    store().put("side/train.jsonl", (folder.path / "train.jsonl").read_bytes())
    runs = [start(folder, door, "train", "run.yaml", f"run_name=side-{index}", f"train_data_path={url('side/train.jsonl')}") for index in range(3)]
    for run in runs:
        ended(run)
    asked = [asked for asked in door.asked if asked.startswith("GET") and "train.jsonl" in asked]
    expect(len(asked) == 1, f"not fetched once: {asked}")


def model(folder: Folder) -> None:
    """a model and weights to start from are read from the store: a folder, a checkpoint, the text that names the latest"""
    door = Door(store())
    folder.train("first")
    export = max((folder.run("first") / "huggingface").glob("ba*"))
    store().put_folder("models/tiny", export)
    store().put_folder("models/checkpoints", folder.run("first") / "checkpoints")
    checkpoint = next((folder.run("first") / "checkpoints").glob("ep*"))
    folder.train("local", f"model={export}", "init=pretrained")
    trained(folder, door, "remote", f"model={url('models/tiny')}", "init=pretrained")
    folder.same_run("remote", "local")
    folder.train("local-weights", f"custom_weights_path={checkpoint}")
    for name in (checkpoint.name, "latest-sharded-rank0.symlink"):
        trained(folder, door, f"weights-{name}", f"custom_weights_path={url(f'models/checkpoints/{name}')}")
        folder.same_run(f"weights-{name}", "local-weights")
    has(trained(folder, door, "none", f"model={url('models')}", code=2), "a folder in Hugging Face layout, with a config.json")


def whole_run(folder: Folder) -> None:
    """a run is at its url as it is here; of the checkpoints the newest stay; boto3 and PyTorch read what is there"""
    door, place = Door(store()), "whole/prefix/results"
    said = trained(folder, door, "results", f"save_folder={url('whole/prefix')}", "training_duration=5ep", "save_num_checkpoints_to_keep=2")
    has(said, f"Uploaded to {url(place)}")
    names = store().names(place)
    here = [str(path.relative_to(folder.run("results"))) for path in folder.run("results").rglob("*") if path.is_file()]
    here = [name for name in here if ".lock" not in name and "latest" not in name and not name.startswith("flight")]
    there = [name for name in names if "latest" not in name]
    expect(sorted(here) == there, f"{sorted(here)}\n{there}")
    for name in here:
        expect(store().get(f"{place}/{name}") == (folder.run("results") / name).read_bytes(), f"{name} differs")
    expect(SECRET not in (folder.run("results") / "run.yaml").read_text(), "a secret is in run.yaml")
    latest = store().get(f"{place}/checkpoints/latest-sharded-rank0.symlink").decode()
    expect(latest == f"{place}/checkpoints/ep5-ba30", latest)
    order = [re.sub(r"\?.*", "", asked).split("/")[-1] for asked in door.asked if "ep5-ba30" in asked and asked.startswith("PUT")]
    expect(order == ["__0_0.distcp", ".metadata"], str(order))
    downloaded = folder.path / "downloaded"
    store().download(latest, downloaded)
    folder.tessera("checkpoint", "verify", downloaded)
    ran = subprocess.run([os.environ["TORCH_PYTHON"], "-c", TORCH, downloaded], capture_output=True, text=True, check=False)
    expect(ran.stdout.split()[:1] == ["30"], f"{ran.stdout}{ran.stderr}")


def another_machine(folder: Folder) -> None:
    """a run that is killed goes on in an empty folder with what the store has, and ends with the same numbers and weights"""
    place, machines = url("killed"), [Folder(), Folder(), Folder()]
    folder.train("straight", *LONG)
    overrides = [f"save_folder={place}", *LONG, "save_num_checkpoints_to_keep=2"]
    door = moves_on(store(), "killed", machines, *overrides[1:])
    machines[2].run("moving").rename(folder.run("moving"))
    folder.same_run("moving", "straight")
    # Whole runs that are looked at from elsewhere are whole.
    fresh = Folder()
    trained(fresh, door, "moving", *overrides)
    expect(fresh.weights("moving") == folder.weights("straight"), "another model")
    has(trained(Folder(), door, "moving", *overrides, "autoresume=false", code=2), "holds checkpoints of an earlier run", f"{place}/moving")
    for machine in (*machines, fresh):
        machine.remove()


def refusals(folder: Folder) -> None:
    """credentials that are missing, wrong, expired or not enough, a bucket or a file that is not there: each says what helps"""
    door = Door(store())
    store().put("refused/train.jsonl", conversation(1).encode())
    source = f"train_data_path={url('refused/train.jsonl')}"
    has(trained(folder, door, "a", source, code=2, **NOBODY), url("refused/train.jsonl"), "there are no credentials", "set AWS_ACCESS_KEY_ID")
    for status, code, said in ((400, "ExpiredToken", "have expired"), (403, "InvalidAccessKeyId", "does not accept the credentials"), (403, "AccessDenied", "not permitted")):
        door.answer = (status, code)
        for override in (source, f"save_folder={url('refused')}"):
            has(trained(folder, door, "b", override, code=2), url("refused"), said)
    door.answer = None
    has(trained(folder, door, "c", "save_folder=s3://missing/x", code=2), "s3://missing/x", "no such bucket")
    has(trained(folder, door, "d", f"train_data_path={url('refused/none.jsonl')}", code=2), "nothing is there; check the path")
    has(trained(folder, door, "e", "train_data_path=https://user:a-secret@host/x.jsonl", code=2), "would be written into the run's files")
    door.shut = True
    has(trained(folder, door, "f", f"save_folder={url('refused')}", code=4), "does not answer as it should")


def store_away(folder: Folder) -> None:
    """a store that goes away in the middle holds up nothing and is told once; at the end it is an error, and the next start uploads the rest"""
    door, place = Door(store()), "away/run"
    overrides = [f"save_folder={url('away')}", *LONG]
    run = start(folder, door, "train", "run.yaml", "run_name=run", *overrides)
    wait_for_checkpoint(store(), place, run)
    door.shut = True
    said = ended(run, 4)
    has(said, "Training goes on", "the run is whole in runs/run", "the same command uploads the rest")
    expect(said.count("Training goes on") == 1, said)
    folder.train("straight", *LONG)
    folder.same_run("run", "straight")
    door.shut = False
    has(trained(folder, door, "run", *overrides), "This run is finished", f"Uploaded to {url(place)}")
    newest = max(store().names(place), key=lambda name: int(match[1]) if (match := re.search(r"ep\d+-ba(\d+)/", name)) else 0)
    has(newest, "ba400/")
    expect(store().get(f"{place}/metrics.jsonl") == (folder.run("run") / "metrics.jsonl").read_bytes(), "metrics differ")


def content(place: str) -> dict[str, bytes]:
    return {name: store().get(f"{place}/{name}") for name in store().names(place)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock")}


def only_oldest_checkpoint(run: Path) -> None:
    for checkpoint in sorted((run / "checkpoints").glob("ep*"), key=lambda path: int(path.name.split("-ba")[1]))[1:]:
        shutil.rmtree(checkpoint)


def another_run(folder: Folder) -> None:
    """what a run of the same name left at the url is not touched by another, whichever has come further, nor is what is here; both are named"""
    door, there = Door(store()), "shared/team"
    lasting = ["training_duration=5ep", "save_num_checkpoints_to_keep=2"]
    by_url = [f"save_folder={url('shared')}", *lasting]
    trained(folder, door, "team", *by_url)
    before = content(there)
    other = ["learning_rate=0.02"]

    def refused(machine: Folder, *overrides: str, says: str) -> None:
        here = files(machine.run("team") / "checkpoints") if machine.run("team").exists() else {}
        has(trained(machine, door, "team", *by_url, *overrides, code=2), "are not the same", says, "runs/team", url(there), "set another run_name")
        time.sleep(0.2)
        expect(content(there) == before, f"the url was changed: {overrides}")
        if here:
            expect(files(machine.run("team") / "checkpoints") == here, f"this machine's checkpoints were changed: {overrides}")

    refused(Folder(), *other, says="learning_rate is 0.02 in the run file, and was 0.01 at the url")
    # Its own run, as far as that at the url.
    local = Folder()
    local.train("team", *lasting, *other)
    refused(local, *other, says="learning_rate")
    refused(local, says="were not saved together")
    # One that has not come as far.
    only_oldest_checkpoint(local.run("team"))
    logs = (local.run("team") / "metrics.jsonl").read_bytes()
    refused(local, says="in the run file, and was 0.02 on this machine")
    expect((local.run("team") / "metrics.jsonl").read_bytes() == logs, "the logs were replaced")
    # The same settings do not make it the same run.
    same = Folder()
    same.train("team", *lasting)
    refused(same, says="were not saved together")
    for machine in (local, same):
        machine.remove()


def saved_by_two(folder: Folder) -> None:
    """a checkpoint that somebody else puts at the url meanwhile is neither replaced nor removed, and the run says so at its end"""
    door, place = Door(store()), "two/run"
    overrides = [f"save_folder={url('two')}", *LONG, "save_num_checkpoints_to_keep=2"]
    run = start(folder, door, "train", "run.yaml", "run_name=run", *overrides)
    wait_for_checkpoint(store(), place, run)
    last = f"{place}/checkpoints/{LAST}"
    store().put(f"{last}/__0_0.distcp", b"another's")
    store().put(f"{last}/.metadata", b"another's")
    said = ended(run, 2)
    has(said, "were not saved together", f"runs/run/checkpoints/{LAST}", f"s3://{BUCKET}/{last}", "Nothing was replaced there")
    expect(store().get(f"{last}/.metadata") == b"another's" and store().get(f"{last}/__0_0.distcp") == b"another's", "it was replaced")


def exports(folder: Folder) -> None:
    """what an earlier run exported is not taken for this one's; what is there is not uploaded again"""
    door, place = Door(store()), "exports/run"
    folder.train("run", "learning_rate=0.02")
    earlier = folder.weights("run")
    shutil.rmtree(folder.run("run") / "checkpoints")
    by_url = f"save_folder={url('exports')}"
    # As a run that was deleted but for its models has left it.
    export = max((folder.run("run") / "huggingface").glob("ba*"))
    store().put_folder(f"{place}/huggingface/{export.name}", export)
    store().put(f"{place}/huggingface/{export.name}/model-00002-of-00002.safetensors", b"of more files")
    trained(folder, door, "run", by_url)
    there = content(f"{place}/huggingface/{export.name}")
    expect(folder.weights("run") != earlier and there["model.safetensors"] == folder.weights("run"), "not this run's model")
    expect(set(there) == {path.name for path in export.iterdir()}, f"other files: {sorted(there)}")
    # The first to be deleted, by a request that names it in its body, is what makes the old one whole.
    asked = [asked for asked in door.asked if asked.startswith("POST") and "delete" in asked or asked.startswith("PUT") and "/huggingface/" in asked]
    # The last is the sign of life.
    expect("delete" in asked.pop(), str(asked))
    expect("delete" in asked[0] and asked[-1].endswith("/config.json"), f"whole while it is replaced: {asked}")
    puts = [asked for asked in door.asked if asked.startswith("PUT") and ("/huggingface/" in asked or "distcp" in asked)]
    has(trained(folder, door, "run", by_url), "This run is finished")
    again = [asked for asked in door.asked if asked.startswith("PUT") and ("/huggingface/" in asked or "distcp" in asked)]
    expect(again == puts, f"uploaded again: {again[len(puts):]}")


def broken_off(folder: Folder) -> None:
    """what a process that was killed left undone at the url is done by the next: the latest is named, what is half removed goes"""
    door, place = Door(store()), "broken/run"
    overrides = [f"save_folder={url('broken')}", "learning_rate=1e-5", "training_duration=5ep", "save_num_checkpoints_to_keep=2"]
    trained(folder, door, "run", *overrides)
    latest = f"{place}/checkpoints/latest-sharded-rank0.symlink"
    right, names = store().get(latest), store().names(place)
    store().put(latest, b"broken/run/checkpoints/ep1-ba6")
    store().put(f"{place}/checkpoints/ep1-ba6/__0_0.distcp", b"half removed")
    trained(folder, door, "run", *overrides)
    expect(store().get(latest) == right, store().get(latest).decode())
    expect(store().names(place) == names, f"{store().names(place)}")


def alive(folder: Folder) -> None:
    """a run that works says so at its url, where nobody then deletes or resumes it; a cancel is heard unless it is older than the run; nothing of that stays"""
    door, place = Door(store()), "alive/run"
    store().put(f"{place}/.cancel", b"of an earlier run")
    overrides = [f"save_folder={url('alive')}", "training_duration=4000ba", "save_interval=20ba"]
    run = start(folder, door, "train", "run.yaml", "run_name=run", *overrides)
    wait_for_checkpoint(store(), place, run)
    expect(".alive" in store().names(place), str(store().names(place)))
    for command in (("delete", url(place), "--yes"), ("resume", url(place))):
        has(ended(start(folder, door, "runs", *command), 2), "gave a sign of life", "until it has given none for two minutes")
    store().put(f"{place}/.cancel", b"written by hand")
    has(ended(run, 143), "Canceled after")
    expect(not any(name.startswith(".") for name in store().names(place)), str(store().names(place)))
    has(ended(start(folder, door, "runs", "delete", url(place), "--yes")), "deleted")
    expect(store().names(place) == [], str(store().names(place)))


def failure(folder: Folder) -> None:
    """a run that fails does not wait for a store that is away"""
    door = Door(store())
    run = start(folder, door, "train", "run.yaml", "run_name=run", f"save_folder={url('failure')}", "training_duration=4000ba", "save_interval=20ba")
    wait_for_checkpoint(store(), "failure/run", run)
    door.shut = True
    checkpoints = folder.run("run") / "checkpoints"
    checkpoints.rename(folder.path / "taken-away")
    checkpoints.write_text("in the way")
    since = time.monotonic()
    said, _ = run.communicate(timeout=120)
    took = time.monotonic() - since
    expect(run.returncode not in (0, -9), f"ended with {run.returncode}: {said[-2000:]}")
    has(said, "not all of runs/run is at", "the same command uploads the rest")
    expect(took < 12, f"it took {took:.1f} s: {said[-2000:]}")


@functools.cache
def undisturbed() -> Folder:
    """A folder with the run that the next function's are held against."""
    folder = Folder(LARGE)
    folder.train("straight", *PARTS)
    atexit.register(folder.remove)
    return folder


def speaks_well(place: Store, part: str) -> None:
    """Data by url, and a run that is killed and goes on elsewhere, its checkpoints uploaded in parts and named last."""
    machines = [Folder(LARGE), Folder(LARGE)]
    place.put("data/a/train.jsonl", (machines[0].path / "train.jsonl").read_bytes())
    by_url = f"train_data_path={place.url('data/a')}"
    door = moves_on(place, "moved", machines, *PARTS, by_url)
    shutil.copytree(undisturbed().run("straight"), machines[-1].run("straight"))
    machines[-1].same_run("moving", "straight")
    checkpoints = {name.split("/")[1] for name in place.names("moved/moving") if name.startswith("checkpoints/ep")}
    expect(checkpoints == {"ep1-ba54", "ep1-ba60"}, str(checkpoints))
    asked = [urllib.parse.unquote(asked) for asked in door.asked]
    written = [asked for asked in asked if asked.startswith(("PUT", "POST")) and "/checkpoints/" in asked]
    expect(sum("ep1-ba60/__0_0.distcp" in asked and part in asked for asked in written) >= 2, f"not in parts: {written}")
    expect("latest-sharded-rank0.symlink" in written[-1] and "ep1-ba60/.metadata" in written[-2], f"not named last: {written[-3:]}")
    latest = place.get("moved/moving/checkpoints/latest-sharded-rank0.symlink").decode()
    expect(latest == "moved/moving/checkpoints/ep1-ba60", latest)
    downloaded = machines[0].path / "downloaded"
    place.download(latest, downloaded)
    machines[0].tessera("checkpoint", "verify", downloaded)
    has(ended(start(machines[0], door, "runs", "list", place.url("moved"))), "moving", "COMPLETED")
    has(ended(start(machines[0], door, "runs", "delete", place.url("moved/moving"), "--yes")), "deleted")
    expect(place.names("moved") == [], str(place.names("moved")))
    said = trained(machines[0], door, "none", f"train_data_path={place.url('data/none.jsonl')}", code=2)
    has(said, "nothing is there; check the path")
    said = trained(machines[0], door, "none", f"save_folder={place.scheme}://missing/x", code=2)
    has(said, "no such bucket or container")
    for machine in machines:
        machine.remove()


def azure(folder: Folder) -> None:
    """Azure: data by url, a run killed and gone on with elsewhere, bit for bit, its checkpoints in blocks; Azurite has them"""
    speaks_well(Azure(), "comp=block&")


def google(folder: Folder) -> None:
    """Google's XML interface: the same, in parts, each version by its generation; moto has them"""
    speaks_well(Google(), "partNumber=")


def ranks(folder: Folder) -> None:
    """a run of two ranks is killed and goes on elsewhere as one of two, bit for bit, and as one of four, but for rounding"""
    # Slow enough that rounding stays small.
    long = ["training_duration=400ba", "save_interval=50ba", "learning_rate=1e-5", "devices=cpu:2"]
    folder.train("straight", *long)
    for count in (2, 4):
        name, machines = f"ranks-{count}", [Folder(), Folder()]
        moves_on(store(), name, machines, *long, last=(f"devices=cpu:{count}",))
        last = store().names(f"{name}/moving/checkpoints/{LAST}")
        expect(last == [".metadata", *(f"__{rank}_0.distcp" for rank in range(count))], f"{count} ranks saved {last}")
        machines[-1].run("moving").rename(folder.run(name))
        if count == 2:
            folder.same_run(name, "straight")
        else:
            folder.close_run(name, "straight", 1e-4)
        for machine in machines:
            machine.remove()


if __name__ == "__main__":
    # Before several ask for it at once.
    store()
    first = (azure, google, ranks, another_machine)
    rest = (data, side_by_side, model, whole_run, refusals, store_away, another_run, saved_by_two, exports, broken_off, alive, failure, delta, escapes, catalog)
    run_cases(*first, *rest, beside=3)
