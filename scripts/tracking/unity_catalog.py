#!/usr/bin/env python3
"""A workspace's Unity Catalog, as much of it as models are registered by; it keeps their files in a store of the S3 protocol. With
arguments this registers a model there by MLflow's own client, whose requests are what ours are held against."""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from server import HOST, Server, free_port, handed_on

CALLS = "/api/2.0/mlflow/unity-catalog/"
TOKEN, WORKSPACE = "dapi-s3cr3t", "4711"
KEYS = {"access_key_id": "handed-out", "secret_access_key": "h4nded-0ut", "session_token": "s3ss10n"}


class Catalog:
    """What is not asked of the catalog is handed on to an MLflow server: that of the workspace."""

    def __init__(self, bucket: str, server: Server):
        self.port, self.models, self.versions = free_port(), {}, []
        self.bucket, self.storage_mode = bucket, "CUSTOMER_HOSTED"
        # What was asked of it: method, call, keys and values.
        self.asked: list[tuple[str, str, dict]] = []
        # A call whose next answer is lost, after what it asks for has been done.
        self.loses: str | None = None
        # A call that is refused, the seconds that credentials last, and what tells the folders of models from those of deleted ones.
        self.refuses, self.lasts, self.suffix = None, 3600, ""
        catalog, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.reply(403, {"error_code": "PERMISSION_DENIED", "message": "who are you?"})
                    return
                address = urlsplit(self.path)
                if not address.path.startswith(CALLS):
                    status, content = handed_on(server.port, self.command, self.path, body, self.headers)
                    self.reply(status, content)
                    return
                call = address.path.removeprefix(CALLS)
                given = json.loads(body) if body else dict(parse_qsl(address.query))
                with lock:
                    catalog.asked.append((self.command, call, given))
                    if catalog.refuses == call:
                        self.reply(400, {"error_code": "INVALID_STATE", "message": "not now"})
                        return
                    answer = getattr(catalog, call.replace("/", "_").replace("-", "_").replace(":", "_"))(given)
                    if catalog.loses == call:
                        catalog.loses = None
                        self.close_connection = True
                        return
                self.reply(*answer)

            def reply(self, status: int, content: object) -> None:
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("x-databricks-org-id", WORKSPACE)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

            do_GET = do_POST = do_PUT = do_PATCH = handle_any

        self.http = ThreadingHTTPServer((HOST, self.port), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        return {"DATABRICKS_HOST": f"http://{HOST}:{self.port}", "DATABRICKS_TOKEN": TOKEN}

    def calls(self, *names: str) -> list[tuple[str, str, dict]]:
        return [asked for asked in self.asked if asked[1] in names]

    def version(self, given: dict) -> dict:
        return next(it for it in self.versions if (it["name"], it["version"]) == (given["name"], given["version"]))

    def registered_models_is_databricks_sdk_models_artifact_repository_enabled(self, _: dict) -> tuple[int, dict]:
        return 200, {"is_databricks_sdk_models_artifact_repository_enabled": False}

    def registered_models_get(self, given: dict) -> tuple[int, dict]:
        if given["name"] not in self.models:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"}
        return 200, {"registered_model": self.models[given["name"]]}

    def registered_models_create(self, given: dict) -> tuple[int, dict]:
        self.models[given["name"]] = given
        return 200, {"registered_model": given}

    def registered_models_update(self, _: dict) -> tuple[int, dict]:
        # Only for its owner, who may be another than those who make versions.
        return 403, {"error_code": "PERMISSION_DENIED", "message": "not yours"}

    def model_versions_search(self, given: dict) -> tuple[int, dict]:
        # One on a page.
        found = [version for version in self.versions if given["filter"] == f"name='{version['name']}'"]
        at = int(given.get("page_token") or 0)
        more = {"next_page_token": str(at + 1)} if at + 1 < len(found) else {}
        return 200, {"model_versions": found[at : at + 1]} | more

    def model_versions_create(self, given: dict) -> tuple[int, dict]:
        number = str(1 + sum(version["name"] == given["name"] for version in self.versions))
        place = f"s3://{self.bucket}/{given['name']}{self.suffix}/{number}"
        self.versions.append(given | {"version": number, "status": "PENDING_REGISTRATION", "storage_location": place})
        return 200, {"model_version": self.versions[-1]}

    def model_versions_get(self, given: dict) -> tuple[int, dict]:
        return 200, {"model_version": self.version(given)}

    def model_versions_generate_temporary_credentials(self, given: dict) -> tuple[int, dict]:
        ends = str(int((time.time() + self.lasts) * 1000))
        credentials = {"aws_temp_credentials": KEYS, "expiration_time": ends, "storage_mode": self.storage_mode}
        return 200, {"credentials": credentials}

    def model_versions_finalize(self, given: dict) -> tuple[int, dict]:
        self.version(given)["status"] = "READY"
        return 200, {"model_version": self.version(given)}


def register(name: str, source: str, run: str, description: str, tags: str, folder: str) -> None:
    """By MLflow's client, which takes a model's files from a folder."""
    from mlflow.entities.model_registry import ModelVersionTag
    from mlflow.store._unity_catalog.registry.rest_store import UcModelRegistryStore

    # Where it looks for whether the weights are there.
    Path(folder, "model").mkdir(exist_ok=True)
    store = UcModelRegistryStore("databricks-uc", os.environ["TRACKING"])
    store.create_registered_model(name)
    tags = [ModelVersionTag(key, value) for key, value in json.loads(tags).items()]
    version = store.create_model_version(name, source, run, tags=tags, description=description, local_model_path=folder)
    assert version.status == "READY", version


if __name__ == "__main__":
    register(*sys.argv[1:])
