"""A store of Azure's protocol: Azurite, Microsoft's own emulator, read and filled by Microsoft's client."""

import atexit
import os
import subprocess

from azure.storage.blob import BlobServiceClient
from store import HOST, Store

# Azurite's only account, which everybody knows.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azure(Store):
    """Azurite with one container, kept in memory. It ends with whoever started it."""

    scheme = "az"

    def __init__(self):
        program = os.environ["AZURITE"]
        # Its client here is newer than it is, and what it asks for is not.
        options = ["--silent", "--inMemoryPersistence", "--blobHost", HOST, "--blobPort", "0", "--skipApiVersionCheck", "--disableTelemetry"]
        self.process = subprocess.Popen(["node", program, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        atexit.register(self.process.terminate)
        self.port = self.listening()
        where = f"http://{HOST}:{self.port}/{ACCOUNT}"
        self.client = BlobServiceClient(where, credential=KEY).create_container(self.bucket)

    def listening(self) -> int:
        """The port that it says it has."""
        said = []
        while line := self.process.stdout.readline():
            said.append(line)
            if "successfully listen" in line:
                return int(line.split(":")[-1].strip().rstrip("/"))
        raise OSError(f"Azurite ended: {''.join(said)}")

    def environment(self, address: str) -> dict[str, str]:
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": address}

    def put(self, name: str, content: bytes) -> None:
        self.client.upload_blob(name, content, overwrite=True)

    def get(self, name: str) -> bytes:
        return self.client.download_blob(name).readall()

    def names(self, prefix: str) -> list[str]:
        return sorted(blob.name.removeprefix(f"{prefix}/") for blob in self.client.list_blobs(f"{prefix}/"))
