"""Strictness for the whole suite, and the real model and small real data that tests share."""

import csv
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".xla-cache"  # compiled programs are shared by the suite's processes: many tests run the real command

FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # tests compile more than run
os.environ["XLA_FLAGS"] = f"{FAST_COMPILE} --xla_force_host_platform_device_count=8"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(ROOT / "experiments"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # for the processes that tests start

import forked  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache.compilation_cache import reset_cache  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from ftjax.demo import reviews  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

from ftjax.models import build, nf4  # noqa: E402
from ftjax.models.bert import NAMES as BERT  # noqa: E402
from ftjax.models.bert import BertConfig  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a module compiled is dropped after it: over the whole suite it would come to gigabytes a process."""
    yield
    jax.clear_caches()


@pytest.fixture
def no_cache():
    """Programs that a cache must not give back: for chips that are not there, or of devices that would wait for each other."""
    for enabled in (False, True):
        jax.config.update("jax_enable_compilation_cache", enabled)
        reset_cache()  # or it goes by what it was when first used
        if not enabled:
            yield


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real MiniLM directory."""
    return reviews.model_dir()


@pytest.fixture(scope="session")
def review_files(tmp_path_factory):
    """The real review sentences: split -> CSV file."""
    return reviews.write(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, minilm) -> Path:
    """A directory like MiniLM's, tokenizer and all, but tiny and random: commands run on it in seconds."""
    return write_tiny_bert(tmp_path_factory.mktemp("tiny-bert"), minilm, pooler=True)


@pytest.fixture(scope="session")
def tiny_mlm(tmp_path_factory, minilm) -> Path:
    """The same with a masked-language-modelling head."""
    return write_tiny_bert(tmp_path_factory.mktemp("tiny-mlm"), minilm, masked_lm=True)


def write_tiny_bert(directory: Path, tokenizer: Path, *, config: dict | None = None, **heads: bool) -> Path:
    """A tiny random BERT with these heads, as transformers would save it. config: what differs from `tiny_config`."""
    config = tiny_config(**{"vocab_size": 30522, "max_position_embeddings": 64} | (config or {}))
    tensors = {}
    for name, value in random_params(build(config, **heads), scale=0.05).items():
        theirs, transposed = BERT.theirs(name)
        tensors[theirs] = np.ascontiguousarray(np.asarray(value).T if transposed else np.asarray(value))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", **dataclasses.asdict(config)}))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(tokenizer / name, directory)
    return directory


@pytest.fixture(scope="session")
def few_reviews(tmp_path_factory, review_files) -> dict[str, Path]:
    """60 training, 30 evaluation sentences as CSV, and 40 without labels as text."""
    directory = tmp_path_factory.mktemp("few-reviews")
    with review_files["train"].open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    rows = rows[::50]
    found = {}
    for name, part in (("train", rows[:60]), ("eval", rows[60:90])):
        found[name] = directory / f"{name}.csv"
        with found[name].open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *part])
    found["unlabeled"] = directory / "unlabeled.txt"
    found["unlabeled"].write_text("".join(text + "\n" for text, _ in rows[90:130]), encoding="utf-8")
    return found


@pytest.fixture(scope="session")
def few(few_reviews, tmp_path_factory) -> Path:
    """Its training sentences: 24 with a label, 36 whose cell is empty."""
    path = tmp_path_factory.mktemp("few") / "few.csv"
    with few_reviews["train"].open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows[:24], *([text, ""] for text, _ in rows[24:])])
    return path


def run_command(*arguments, timeout=300, **options):
    """The real command in a process of its own, on one device: the finished process, output as text."""
    return start_command(*arguments, **options).finish(timeout)


def start_command(*arguments, **options):
    """The same, while it runs."""
    return forked.Command(*arguments, environment=command_environment(), **options)


def fail(capsys, *arguments, status=2):
    """Run a command that must fail; its one line."""
    from ftjax.cli import main

    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == status, err
    assert out == ""
    assert "Traceback" not in err
    last = err.rstrip("\n").splitlines()[-1]
    assert last.startswith("ftjax: "), err
    return last


def command_environment() -> dict[str, str]:
    """The suite's environment with one CPU device, as a user's machine has."""
    return {**os.environ, "XLA_FLAGS": FAST_COMPILE}


def tiny_config(**changes) -> BertConfig:
    """A BERT small enough to compile in a second."""
    small = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
    }
    return BertConfig(**{**small, **changes})


def random_params(model, seed=0, scale=0.1):
    """Random values for every parameter, norms and biases included, so that a mix-up shows."""
    rng = np.random.default_rng(seed)

    def value(name, shape):
        if name.endswith(nf4.CODES):
            return jnp.asarray(rng.integers(0, 256, shape), jnp.uint8)
        centre = 0.5 if name.endswith((nf4.SCALES, ".lora_magnitude")) else float(name.endswith(".scale"))
        return jnp.asarray(centre + scale * rng.standard_normal(shape), jnp.float32)

    return {name: value(name, shape.shape) for name, shape in model.shapes.items()}


def random_batch(rows=8, length=12, vocab=64, classes=2, seed=0, unlabeled=0):
    """A ragged batch, padded on the right, with some rows unlabelled."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    labels[:unlabeled] = -100
    return {
        "input_ids": rng.integers(5, vocab, (rows, length)).astype(np.int32) * mask,
        "attention_mask": mask,
        "token_type_ids": (rng.integers(0, 2, (rows, length)) * mask).astype(np.int32),
        "labels": labels,
        "example_ids": np.arange(rows, dtype=np.int32),
    }


def tiny_model(**kwargs):
    """(model, random parameters) with a classifier of two classes and a masked-LM head."""
    config = tiny_config(**kwargs.pop("config", {}))
    model = build(config, num_labels=2, masked_lm=True, **kwargs)
    return model, random_params(model)
