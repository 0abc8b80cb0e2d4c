"""Delta tables in a store, named by their urls and by the names that they have in Unity Catalog."""

import json
import re
from pathlib import Path

from catalog import KEYS, TOKEN, Catalog
from running import ended, has, start, store, trained, url
from store import BUCKET, NOBODY, Door
from tiny import Folder, expect

TABLES = Path(__file__).resolve().parents[2] / "crates/data/tests/fixtures/delta"


def pinned(folder: Folder, run: str) -> dict:
    return json.loads((folder.run(run) / "data.json").read_text())["train"][0]


def delta(folder: Folder) -> None:
    """a Delta table gives the numbers of its rows as lines; a run keeps its version when the table has gone on, and names both if it is gone"""
    door, place, last = Door(store()), "lake/chat", f"{6:020}.json"
    store().put_folder(place, TABLES / "conversations")
    table = f"train_data_path=delta:{url(place)}"
    folder.train("lines", f"train_data_path={TABLES / 'conversations.jsonl'}")
    folder.train("here", f"train_data_path=delta:{TABLES / 'conversations'}")
    trained(folder, door, "there", table)
    for name in ("here", "there"):
        folder.same_run(name, "lines")
        pin = pinned(folder, name)
        expect(pin["version"] == "6" and pin["rows"] == 42, str(pin))
    # What was removed before the checkpoint is not asked for, and nothing twice.
    fetched = [re.sub(r"\?.*", "", asked) for asked in door.asked if asked.startswith("GET") and place in asked and "list-type" not in asked]
    expect(len(fetched) == len(set(fetched)) == 4 + 7, str(fetched))

    store().client.delete_object(Bucket=BUCKET, Key=f"{place}/_delta_log/{last}")
    trained(folder, door, "moving", table)
    store().put_folder(place, TABLES / "conversations")
    trained(folder, door, "moving", table)
    pin = pinned(folder, "moving")
    expect(pin["version"] == "5" and pin["rows"] == 36, str(pin))
    has(trained(folder, door, "seventh", f"{table}@7", code=2), f"delta:{url(place)}@7: version 7 cannot be read: those from 4 to 6 can")
    # A table's files are not read as such, wherever they are looked for.
    for name, source in {"files": place, "above": "lake", "pattern": "lake/c*/*.parquet"}.items():
        has(trained(folder, door, name, f"train_data_path={url(source)}", code=2), f"a Delta table to be named as one: delta:{url(place)}")

    files = sorted(name for name in store().names(place) if name.startswith("part"))
    for name in files:
        store().client.delete_object(Bucket=BUCKET, Key=f"{place}/{name}")
    said = trained(folder, door, "moving", table, code=2)
    has(said, "version 5 cannot be read any more", "the newest version is 6", "has been removed, as VACUUM does")
    has(trained(folder, door, "none", f"train_data_path=delta:{url('nowhere')}", code=2), "nothing is there")
    store().put("lake/files/a.jsonl", b"{}")
    has(trained(folder, door, "no-table", f"train_data_path=delta:{url('lake/files')}", code=2), "no Delta table is there")


def escapes(folder: Folder) -> None:
    """the files of a table that is parted are asked for by the names that they have, whatever in them looks like an escape"""
    door = Door(store())
    store().put_folder("escapes/pairs", TABLES / "pairs")
    how = ["task_type=INSTRUCTION_FINETUNE", "columns={prompt: prompt, response: language}"]

    def both(source: str) -> list[str]:
        return [f"train_data_path={source}", f"eval_data_path={source}"]

    folder.train("lines", *how, *both(f"{TABLES / 'pairs.jsonl'}"))
    trained(folder, door, "table", *how, *both(f"delta:{url('escapes/pairs')}"))
    folder.same_run("table", "lines")
    expect(pinned(folder, "table")["files"] == 3, str(pinned(folder, "table")))


def catalog(folder: Folder) -> None:
    """a table is read by its name in Unity Catalog, with the credentials that come with it; what cannot be read is refused by name"""
    door = Door(store())
    store().put_folder("managed/chat", TABLES / "conversations")
    place = {"storage_location": url("managed/chat")}
    tables = Catalog(
        {
            "main.default.chat": place,
            "main.default.local": {"storage_location": (TABLES / "conversations").as_uri()},
            "main.default.view": {"table_type": "VIEW", "data_source_format": None, "storage_location": None},
            "main.default.rows": place | {"data_source_format": "CSV"},
            "main.default.forbidden": place | {"table_id": "forbidden"},
        }
    )
    asking = tables.environment | NOBODY

    def by_name(name: str, **how) -> str:
        said = trained(folder, door, name.split("@")[0].split(".")[-1], f"train_data_path={name}", **(asking | how))
        for secret in (TOKEN, KEYS["secret_access_key"], KEYS["session_token"]):
            expect(secret not in said, f"a secret is printed: {said}")
        return said

    folder.train("lines", f"train_data_path={TABLES / 'conversations.jsonl'}")
    by_name("main.default.chat")
    by_name("main.default.local")
    for name in ("chat", "local"):
        folder.same_run(name, "lines")
    expect(door.askers == {KEYS["access_key_id"]}, str(door.askers))
    expect(door.tokens == {KEYS["session_token"]}, "the store was asked without the token of the credentials")
    asked = [asked for asked in tables.asked if "chat" in asked]
    expect(asked[0] == "GET /api/2.1/unity-catalog/tables/main.default.chat", str(asked))
    path, _, body = asked[1].partition(" {")
    expect(path == "POST /api/2.1/unity-catalog/temporary-table-credentials", str(asked))
    expect(json.loads("{" + body) == {"table_id": "main.default.chat", "operation": "READ"}, str(asked))
    has(ended(start(folder, door, "validate", "run.yaml", "train_data_path=main.default.chat@4", **asking)), "main.default.chat@4: 30 examples")

    has(by_name("main.default.view", code=2), "main.default.view is of the kind VIEW")
    has(by_name("main.default.rows", code=2), "main.default.rows is in the format CSV")
    has(by_name("main.default.none", code=2), "could not find table main.default.none")
    has(by_name("main.default.forbidden", code=2), "does not have permission to access table main.default.forbidden", "no EXTERNAL USE SCHEMA")
    has(by_name("main.default.chat", code=2, DATABRICKS_TOKEN="another"), "does not take DATABRICKS_TOKEN (401)")
    has(by_name("main.default.chat", code=2, DATABRICKS_HOST=None), "DATABRICKS_HOST is not set", "main.default.chat is no file or folder here")
    has(by_name("default.chat", code=2), "must be in the format catalog.schema.table, but got default.chat")
    (folder.path / "main.default.jsonl").write_text((TABLES / "conversations.jsonl").read_text())
    trained(folder, door, "jsonl", "train_data_path=main.default.jsonl")
    folder.same_run("jsonl", "lines")
