"""Models by hub id: the real download code against a server on the loopback interface."""

import base64
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import huggingface_hub
import pytest
from conftest import command_environment, fail
from decoders import write_keras_gpt2

from ftjax.errors import InputError
from ftjax.models import Lora
from ftjax.pretrained import load_pretrained, save_adapter
from ftjax.pretrained.hub import model_directory
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


def in_its_own_process(program, endpoint, home, *arguments, **variables):
    """A program where HF_ENDPOINT and the cache are ours: `huggingface_hub` reads them at its import."""
    environment = command_environment() | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5", **variables}
    for proxy in [name for name in os.environ if name.lower().endswith("_proxy")]:
        environment.pop(proxy)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def fetched(asked):
    """The names of the files that were downloaded."""
    return {path.split("?")[0].rsplit("/", 1)[1] for path in asked if "/resolve/" in path}


def load_in_its_own_process(name, endpoint, home):
    """Load a model by name."""
    program = """
import sys
from ftjax.errors import InputError
from ftjax.pretrained import load_pretrained
try:
    print(len(load_pretrained(sys.argv[1]).params))
except InputError as error:
    print("InputError", error)
"""
    done = in_its_own_process(program, endpoint, home, name)
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


TOKEN = "hf_" + "SecretSecretSecret"
PUSH = """
import sys
from pathlib import Path
from ftjax.errors import InputError
from ftjax.pretrained.hub import check_push, push
try:
    check_push(sys.argv[2])
    print(push(Path(sys.argv[1]), sys.argv[2], private=True))
except InputError as error:
    print("InputError", error)
"""


@pytest.fixture
def taking_hub():
    """A server that takes uploads as the hub does, with one token; yields (address, made repositories, files taken)."""
    made, taken = [], {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status, body):
            body = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
            elif self.path == "/api/repos/create":
                made.append(json.loads(body))
                self.answer(200, {"url": f"http://{self.headers['Host']}/someone/mine", "name": "someone/mine"})
            elif self.path == "/api/validate-yaml":
                self.answer(200, {"warnings": [], "errors": []})
            elif "/preupload/" in self.path:
                files = [file["path"] for file in json.loads(body)["files"]]
                self.answer(200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        taken[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                address = f"http://{self.headers['Host']}/someone/mine/commit/{COMMIT}"
                self.answer(200, {"commitUrl": address, "commitOid": COMMIT, "pullRequestUrl": None})
            else:
                self.answer(404, {"error": self.path})

        def do_GET(self):
            self.answer(200, {"id": "someone/mine", "sha": COMMIT, "siblings": [], "private": True, "tags": [], "downloads": 0})

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", made, taken
    server.shutdown()
    server.server_close()


def test_a_model_is_pushed_with_the_token_of_its_usual_place_which_nobody_sees(taking_hub, tmp_path):
    endpoint, made, taken = taking_hub
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "README.md").write_text("---\ntags: [ftjax]\n---\n# mine\n")
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)  # where `hf auth login` leaves it
    done = in_its_own_process(PUSH, endpoint, home, model, "someone/mine")
    assert done.stdout.strip() == f"{endpoint}/someone/mine", done.stderr
    assert taken == {path.name: path.read_bytes() for path in model.iterdir()}
    assert made[0]["name"] == "mine" and made[0]["organization"] == "someone"
    assert TOKEN not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != home / "token" and TOKEN in path.read_text()]


def test_a_push_that_the_hub_does_not_take(taking_hub, tmp_path):
    endpoint, _, taken = taking_hub
    (tmp_path / "config.json").write_text("{}")
    for address, token, said in (
        (endpoint, "hf_wrong", "the hub did not take it (Client error '401 Unauthorized'"),
        ("http://127.0.0.1:9", TOKEN, "the hub did not take it"),
    ):
        done = in_its_own_process(PUSH, address, tmp_path / "none", tmp_path, "someone/mine", HF_TOKEN=token)
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr
    assert not taken


def test_a_push_that_cannot_be_is_refused_before_anything_is_done(tmp_path, monkeypatch, capsys):
    arguments = ("export", "--checkpoint", tmp_path, "--output", tmp_path / "model", "--push-to-hub")
    assert "--push-to-hub a/b/c: no name of a repository" in fail(capsys, *arguments, "a/b/c")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "nobody is logged in" in fail(capsys, *arguments, "someone/mine")


def test_a_run_is_pushed_when_it_ends_and_again_when_that_failed(taking_hub, tiny_bert, few_reviews, tmp_path):
    endpoint, made, taken = taking_hub
    run = "import sys; from ftjax.cli import main; main(sys.argv[1:])"
    arguments = ["train", "--model", tiny_bert, "--train-file", few_reviews["train"], "--output", tmp_path / "run"]
    arguments += ["--epochs", 1, "--max-length", 64, "--batch-size", 8, "--buckets", 1, "--push-to-hub", "someone/mine"]
    arguments += ["--method", "partial", "--train-parameters", "head", "--private", "--resume"]
    done = in_its_own_process(run, endpoint, tmp_path / "home", *arguments)
    assert done.returncode == 2 and "nobody is logged in" in done.stderr and not (tmp_path / "run").exists()
    done = in_its_own_process(run, "http://127.0.0.1:9", tmp_path / "home", *arguments, HF_TOKEN=TOKEN)
    assert done.returncode == 2 and "the hub did not take it" in done.stderr and (tmp_path / "run" / "result.json").exists()
    done = in_its_own_process(run, endpoint, tmp_path / "home", *arguments, HF_TOKEN=TOKEN)
    assert done.returncode == 0 and f"On the hub: {endpoint}/someone/mine" in done.stderr, done.stderr
    assert taken == {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert made[-1].get("visibility") == "private" or made[-1].get("private") is True
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_model_of_the_demo_and_one_with_nearly_the_name(tmp_path, monkeypatch):
    assert (model_directory("demo:minilm") / "config.json").is_file()
    with pytest.raises(InputError, match="unknown; known are demo:minilm and demo:smollm2"):
        model_directory("demo:minilmm")
    (tmp_path / "minilm").mkdir()
    for name in (tmp_path / "miniml", "./miniml"):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"no such model directory. Did you mean 'minilm'\?"):
            model_directory(name)


def test_a_directory_that_only_leads_to_a_model(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no config.json; a model is in .*run/model\."):
        model_directory(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"a run's directory, and not a model's; give .*run/model\."):
        model_directory(tmp_path / "run")


def test_the_demos_rows_as_files(tmp_path):
    done = subprocess.run([sys.executable, "-m", "ftjax.demo", tmp_path / "data"], capture_output=True, text=True, check=True)
    assert (tmp_path / "data" / "reviews" / "train.csv").is_file() and "dialogues/test.jsonl" in done.stdout
    done = subprocess.run([sys.executable, "-m", "ftjax.demo"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("ftjax: say where to")
