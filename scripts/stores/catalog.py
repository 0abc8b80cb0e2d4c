"""A stand-in for Unity Catalog: it tells where tables lie, and hands out temporary credentials for their store."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST, TOKEN = "127.0.0.1", "a-token"
KEYS = {"access_key_id": "temporary-id", "secret_access_key": "a-secret-key", "session_token": "a-session"}


class Catalog:
    """Answers as a workspace does, to whoever has its token. Remembers what was asked."""

    def __init__(self, tables: dict[str, dict]):
        catalog = self
        self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                catalog.asked.append(f"{self.command} {self.path} {body}".strip())
                prefix = "/api/2.1/unity-catalog/"
                name = self.path.removeprefix(f"{prefix}tables/")
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.reply(401, {"error_code": "UNAUTHENTICATED", "message": "no such token"})
                elif self.path == f"{prefix}temporary-table-credentials" and json.loads(body)["table_id"].startswith("forbidden"):
                    self.reply(403, {"error_code": "PERMISSION_DENIED", "message": "no EXTERNAL USE SCHEMA"})
                elif self.path == f"{prefix}temporary-table-credentials":
                    self.reply(200, {"aws_temp_credentials": KEYS, "expiration_time": 1})
                elif name in tables:
                    self.reply(200, {"table_type": "MANAGED", "data_source_format": "DELTA", "table_id": name} | tables[name])
                else:
                    self.reply(404, {"error_code": "TABLE_DOES_NOT_EXIST", "message": "no such table"})

            def reply(self, status: int, answer: dict) -> None:
                content = json.dumps(answer).encode()
                self.send_response_only(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        return {"DATABRICKS_HOST": f"http://{HOST}:{self.server.server_address[1]}", "DATABRICKS_TOKEN": TOKEN}
