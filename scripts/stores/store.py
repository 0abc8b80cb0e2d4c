"""Stores, each behind a door that can be shut or answer in its stead: one of the S3 protocol, and the same for Google's, whose XML
interface speaks that protocol but for the names of a few headers.
"""

import http.client
import logging
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)

HOST, BUCKET = "127.0.0.1", "runs"
# What must never be printed.
SECRET = "a-secret-key"
KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
# An environment without them.
NOBODY = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


class Store:
    """moto's server with one bucket."""

    scheme, bucket = "s3", BUCKET

    def __init__(self):
        os.environ.update(KEYS)
        self.server = ThreadedMotoServer(HOST, 0, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]
        self.client = boto3.client("s3", endpoint_url=f"http://{HOST}:{self.port}", region_name="us-east-1")
        self.client.create_bucket(Bucket=self.bucket)

    def environment(self, address: str) -> dict[str, str]:
        """What tells the binary of the store, which it finds at an address."""
        # Where nothing else is said credentials are asked of the machine, which has none here.
        return KEYS | {"AWS_METADATA_ENDPOINT": f"http://{HOST}:9", "AWS_ENDPOINT_URL": address}

    def asked(self, path: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """A request of the binary's as the server understands it."""
        return path, headers

    def answered(self, headers: dict[str, str]) -> dict[str, str]:
        """The headers of the server's answer as the binary understands them."""
        return headers

    def url(self, name: str) -> str:
        return f"{self.scheme}://{self.bucket}/{name}"

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=name, Body=content)

    def put_folder(self, name: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())

    def get(self, name: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read()

    def names(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{prefix}/")
        return sorted(entry["Key"].removeprefix(f"{prefix}/") for page in pages for entry in page.get("Contents", []))

    def download(self, prefix: str, folder: Path) -> None:
        for name in self.names(prefix):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(f"{prefix}/{name}"))


class Google(Store):
    """The same as if it were Google's: it keeps versions, which are called generations there, and takes a bearer's token."""

    # The servers of one process share what they have.
    scheme, bucket = "gs", "others"

    def __init__(self):
        super().__init__()
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def environment(self, address: str) -> dict[str, str]:
        return {"GOOGLE_BASE_URL": address, "GOOGLE_BEARER_TOKEN": SECRET}

    def asked(self, path: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        given = {key.lower(): value for key, value in headers.items()}
        if given.pop("authorization", None) != f"Bearer {SECRET}":
            raise OSError(f"not a request of its bearer's: {path}")
        # moto wants to be asked by somebody, but looks at no signature.
        given["authorization"] = f"AWS4-HMAC-SHA256 Credential={KEYS['AWS_ACCESS_KEY_ID']}/20260101/us-east-1/s3/aws4_request"
        return path.replace("generation=", "versionId="), given

    def answered(self, headers: dict[str, str]) -> dict[str, str]:
        return {"x-goog-generation" if key.lower() == "x-amz-version-id" else key: value for key, value in headers.items()}


class Door:
    """Passes requests on to the store, unless it is shut or has an answer of its own. Remembers what was asked, and
    the tokens of temporary credentials."""

    def __init__(self, store: Store):
        door = self
        self.shut, self.answer, self.asked = False, None, []
        self.tokens, self.askers = set(), set()
        # Files that are said to be taken, and are not.
        self.drops = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                door.asked.append(f"{self.command} {self.path}")
                door.askers.add(self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0])
                door.tokens.add(self.headers.get("X-Amz-Security-Token"))
                if door.shut:
                    self.close_connection = True
                    return
                if door.answer:
                    status, code = door.answer
                    # To HEAD without the text that says why, as stores answer.
                    self.reply(status, {"Content-Length": "0"}, f"<Error><Code>{code}</Code><Message>So it is</Message></Error>".encode())
                    return
                if self.command == "PUT" and door.drops:
                    door.drops -= 1
                    self.reply(200, {"ETag": '"dropped"'}, b"")
                    return
                connection = http.client.HTTPConnection(HOST, store.port)
                path, headers = store.asked(self.path, dict(self.headers))
                connection.request(self.command, path, body, headers)
                found = connection.getresponse()
                self.reply(found.status, store.answered(dict(found.getheaders())), found.read())

            def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response_only(status)
                if self.command != "HEAD":
                    headers = {key: value for key, value in headers.items() if key.lower() != "content-length"}
                    headers["Content-Length"] = str(len(content))
                for key, value in headers.items():
                    if key.lower() not in ("connection", "transfer-encoding"):
                        self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

        self.environment = store.environment(f"http://{HOST}:{self.server.server_address[1]}")
