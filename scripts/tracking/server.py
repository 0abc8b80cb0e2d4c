"""An MLflow server that can be killed and started again, a proxy before it that loses answers or asks for a token, and a hub that
takes models."""

import base64
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Server:
    """`mlflow server` on SQLite, with its files in a folder; it keeps its port when it is started again. It is that of the Python
    environment that runs this, or `program`."""

    def __init__(self, folder: Path, program: Path = Path(sys.executable).with_name("mlflow")):
        self.folder, self.program, self.port, self.process = folder / "mlflow", program, free_port(), None
        self.folder.mkdir(exist_ok=True)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        command = [self.program, "server", "--host", HOST, "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/runs.sqlite", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        # A session of its own: the server's workers must go with it.
        # Jobs are for other uses of MLflow, and keep several processes busy.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("a") as log:
            pipes = {"stdout": log, "stderr": log}
            self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        raise OSError(f"the MLflow server does not come up: {(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def handed_on(port: int, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """What a server of this machine answers to a request."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request(method, path, body, {"Content-Type": headers.get("Content-Type", "application/octet-stream")})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


class Proxy:
    """Hands requests on to a server. Where `loses` says so it answers a third of them with 500 unseen, and a third with 500 after
    the server has done what was asked. Where there is a `token` it lets nobody else in."""

    def __init__(self, server: Server, *, loses: bool = False, token: str | None = None):
        self.port, self.lost = free_port(), 0
        lock, proxy, dice = threading.Lock(), self, random.Random(17)

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if token and self.headers.get("Authorization") != f"Bearer {token}":
                    self.answer(401, b'{"error_code": "UNAUTHENTICATED", "message": "who are you?"}')
                    return
                with lock:
                    # Drawn: in a fixed order the same call might always be the one that is lost.
                    turn = dice.randrange(3) if loses else 0
                    proxy.lost += turn != 0
                if turn == 1:
                    self.answer(500, b"lost")
                    return
                status, content = handed_on(server.port, self.command, self.path, body, self.headers)
                self.answer(500 if turn == 2 else status, content)

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

            do_GET = do_POST = do_PUT = do_PATCH = handle_any

        self.http = ThreadingHTTPServer((HOST, self.port), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"


class Hub:
    """As much of the Hugging Face Hub as a model is put into by: every file in the commit itself. It knows one token, and takes so
    many seconds over a commit."""

    def __init__(self, token: str, takes: float = 0):
        self.takes = takes
        self.port, self.repositories, self.commits = free_port(), [], []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                path = self.path.split("?")[0]
                if self.headers.get("Authorization") != f"Bearer {token}":
                    self.answer(401, {"error": "Invalid credentials"})
                elif path == "/api/whoami-v2":
                    self.answer(200, {"name": "me", "type": "user"})
                elif path == "/api/repos/create":
                    hub.repositories.append(json.loads(body))
                    self.answer(200 if len(hub.repositories) == 1 else 409, {"url": "here"})
                elif self.command == "GET" and not hub.repositories:
                    self.answer(404, {"error": "Repository not found"})
                elif "/tree/" in path:
                    self.answer(200, [])
                elif "/commits/" in path:
                    known = {"authors": [], "date": None, "message": ""}
                    own = [commit for commit in hub.commits if commit["path"].startswith(path.split("commits/")[0])]
                    self.answer(200, [known | {"id": commit["id"], "title": commit["title"]} for commit in own])
                elif "/preupload/" in path:
                    files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
                    self.answer(200, {"files": files})
                elif self.command == "GET":
                    self.answer(200, {"id": path.removeprefix("/api/models/")})
                else:
                    time.sleep(hub.takes)
                    header, *files = map(json.loads, body.splitlines())
                    contents = {file["value"]["path"]: base64.b64decode(file["value"]["content"]) for file in files}
                    commit = {"id": f"{len(hub.commits):040x}", "title": header["value"]["summary"], "path": path, "files": contents}
                    hub.commits.append(commit)
                    self.answer(200, {"commitOid": commit["id"]})

            def answer(self, status: int, content: object) -> None:
                content = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

            do_GET = do_POST = handle_any

        self.http = ThreadingHTTPServer((HOST, self.port), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"
