"""Models by hub id: the real download code against a server on the loopback interface."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from conftest import command_environment

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OUTSIDE = ("pytorch_model.bin", "modeling_custom.py")  # what a hub repository may hold and must not be fetched


@pytest.fixture
def hub(tiny_bert):
    """A server that speaks as much of the hub's protocol as a download needs; yields (address, paths asked for)."""
    asked = []
    names = [path.name for path in tiny_bert.iterdir()]

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            asked.append(self.path)
            path = self.path.split("?")[0]
            if path.startswith("/api/models/someone/tiny/revision/"):
                siblings = [{"rfilename": name} for name in (*names, *OUTSIDE)]
                body = {"id": "someone/tiny", "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
                self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/someone/tiny/tree/"):
                files = [
                    {
                        "type": "file",
                        "path": name,
                        "size": (tiny_bert / name).stat().st_size if name in names else 1,
                        "oid": name,
                    }
                    for name in (*names, *OUTSIDE)
                ]
                self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
            elif path.startswith("/someone/tiny/resolve/") and path.rsplit("/", 1)[1] in names:
                name = path.rsplit("/", 1)[1]
                self.answer(200, (tiny_bert / name).read_bytes(), ETag=f'"{name}"')
            else:
                self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def load_in_its_own_process(name, endpoint, home):
    """Load a model by name where HF_ENDPOINT and the cache are ours: `huggingface_hub` reads them at its import."""
    program = """
import sys
from ftjax.errors import InputError
from ftjax.pretrained import load_pretrained
try:
    print(len(load_pretrained(sys.argv[1]).params))
except InputError as error:
    print("InputError", error)
"""
    environment = command_environment() | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5"}
    for proxy in [name for name in os.environ if name.lower().endswith("_proxy")]:
        environment.pop(proxy)
    done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_hub_id_is_downloaded_once_without_pickles_or_code(hub, tmp_path):
    endpoint, asked = hub
    assert load_in_its_own_process("someone/tiny", endpoint, tmp_path) == "39"
    fetched = {path.rsplit("/", 1)[1] for path in asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & set(OUTSIDE)
    assert load_in_its_own_process("someone/tiny@main", endpoint, tmp_path) == "39"


def test_a_hub_id_that_does_not_exist_and_a_hub_that_does_not_answer(hub, tmp_path):
    endpoint, _ = hub
    said = load_in_its_own_process("someone/nothing", endpoint, tmp_path)
    assert said.startswith("InputError someone/nothing: no such directory")
    said = load_in_its_own_process("someone/tiny", "http://127.0.0.1:9", tmp_path / "other")
    assert said.startswith("InputError someone/tiny: no such directory, and it could not be downloaded")
    assert load_in_its_own_process("not a name!", endpoint, tmp_path).startswith("InputError not a name!: neither")
