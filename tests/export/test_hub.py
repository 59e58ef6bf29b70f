"""A written folder reaches the Hub: against a server on this machine that answers as the Hub's API does. 5 seconds."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ranks import ROOT

PUSH = "from pathlib import Path; from grpo.export.hub import push; print(push(Path({0!r}), {1!r}, private=True))"


class Hub(BaseHTTPRequestHandler):
    """Takes repositories and commits; every repository of somebody else is refused."""

    asked: list[tuple[str, str]] = []
    files: dict[str, bytes] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Hub.asked.append((self.path, body))
        base = f"http://127.0.0.1:{self.server.server_port}"
        if self.path.endswith("/repos/create"):
            made = json.loads(body)
            if made.get("organization") == "somebody":
                return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            return self.answer(200, {"url": f"{base}/me/{made['name']}", "id": f"me/{made['name']}"})
        if "/preupload/" in self.path:
            paths = [one["path"] for one in json.loads(body)["files"]]
            return self.answer(200, {"files": [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(200, {"commitUrl": f"{base}/me/model/commit/0", "commitOid": "0", "success": True})
        return self.answer(200, {"errors": [], "warnings": []})

    def answer(self, code: int, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def push(folder: Path, name: str, endpoint: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_token"}
    return subprocess.run([sys.executable, "-c", PUSH.format(str(folder), name)], cwd=ROOT, capture_output=True,
                          text=True, env=environment)


def test_every_file_arrives_in_a_private_repository(tmp_path: Path, hub: str) -> None:
    (tmp_path / "README.md").write_text("---\nlibrary_name: transformers\n---\n# Model\n")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    ended = push(tmp_path, "model", hub)
    assert ended.stdout.strip() == f"{hub}/me/model", ended.stderr
    assert Hub.files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (made,) = [json.loads(body) for path, body in Hub.asked if path.endswith("/repos/create")]
    assert made["name"] == "model" and made.get("private") is True or made.get("visibility") == "private"


@pytest.mark.parametrize(("name", "endpoint", "word"), [
    ("somebody/model", None, "You don't have the rights"), ("model", "http://127.0.0.1:9", "is written; nearest")])
def test_what_the_hub_refuses_is_one_line_and_the_folder_stays(
    tmp_path: Path, hub: str, name: str, endpoint: str | None, word: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    ended = push(tmp_path, name, endpoint or hub)
    line = ended.stderr.splitlines()[-1]
    assert line.startswith(f"ValueError: push_to_hub='{name}': ") and word in line and "hf_token" not in line
    assert (tmp_path / "config.json").read_text() == "{}"
