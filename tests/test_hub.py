"""Models by hub id: the real download code against a server on the loopback interface."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from conftest import command_environment
from decoders import write_keras_gpt2

from ftjax.models import Lora
from ftjax.pretrained import load_pretrained, save_adapter
from ftjax.pretrained.load import add_lora

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OUTSIDE = ("pytorch_model.bin", "modeling_custom.py")  # what a hub repository may hold and must not be fetched


@pytest.fixture
def hub():
    """A server that speaks as much of the hub's protocol as a download needs; yields (address, repositories, paths asked for).

    repositories: name -> directory, for tests to fill.
    """
    asked, repositories = [], {}

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
            for repository, directory in repositories.items():
                sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
                if path.startswith(f"/api/models/{repository}/revision/"):
                    siblings = [{"rfilename": name} for name in (*sizes, *OUTSIDE)]
                    body = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
                    return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
                if path.startswith(f"/api/models/{repository}/tree/"):
                    files = [
                        {"type": "file", "path": name, "size": size, "oid": name}
                        for name, size in (sizes | dict.fromkeys(OUTSIDE, 1)).items()
                    ]
                    return self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
                name = path.rsplit("/", 1)[1]
                if path.startswith(f"/{repository}/resolve/") and name in sizes:
                    return self.answer(200, (directory / name).read_bytes(), ETag=f'"{name}"')
            return self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", repositories, asked
    server.shutdown()
    server.server_close()


def fetched(asked):
    """The names of the files that were downloaded."""
    return {path.split("?")[0].rsplit("/", 1)[1] for path in asked if "/resolve/" in path}


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


def test_a_hub_id_is_downloaded_once_without_pickles_or_code(hub, tiny_bert, tmp_path):
    endpoint, repositories, asked = hub
    repositories["someone/tiny"] = shutil.copytree(tiny_bert, tmp_path / "repository")
    (tmp_path / "repository" / "tf_model.h5").write_bytes(b"the same weights for TensorFlow")
    assert load_in_its_own_process("someone/tiny", endpoint, tmp_path) == "39"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched(asked)
    assert not fetched(asked) & {*OUTSIDE, "tf_model.h5"}
    assert load_in_its_own_process("someone/tiny@main", endpoint, tmp_path) == "39"


def test_keras_weights_come_where_there_are_no_others_and_a_byte_level_tokenizer_whole(hub, tmp_path):
    endpoint, repositories, asked = hub
    repositories["someone/gpt2"] = tmp_path / "repository"
    write_keras_gpt2(tmp_path / "repository")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "repository" / name).write_text("{}")
    assert load_in_its_own_process("someone/gpt2", endpoint, tmp_path) == "36"
    assert fetched(asked) == {"config.json", "tf_model.h5", "vocab.json", "merges.txt"}


def test_an_adapter_by_hub_id_comes_with_its_base(hub, tiny_bert, tmp_path):
    endpoint, repositories, asked = hub
    repositories |= {"someone/tiny": tiny_bert, "someone/adapter": tmp_path / "repository"}
    adapted = add_lora(load_pretrained(tiny_bert, labels=("a", "b")), Lora(2, 4.0, ("encoder.layers.1.mlp.up",)))
    save_adapter(adapted, adapted.params, ["classifier.kernel"], tmp_path / "repository", base="someone/tiny")
    assert load_in_its_own_process("someone/adapter", endpoint, tmp_path) == "43"
    assert {"adapter_config.json", "adapter_model.safetensors", "config_changes.json", "model.safetensors"} <= fetched(asked)


def test_a_hub_id_that_does_not_exist_and_a_hub_that_does_not_answer(hub, tmp_path):
    endpoint, _, _ = hub
    said = load_in_its_own_process("someone/nothing", endpoint, tmp_path)
    assert said.startswith("InputError someone/nothing: no such directory")
    said = load_in_its_own_process("someone/tiny", "http://127.0.0.1:9", tmp_path / "other")
    assert said.startswith("InputError someone/tiny: no such directory, and it could not be downloaded")
    assert load_in_its_own_process("not a name!", endpoint, tmp_path).startswith("InputError not a name!: neither")
