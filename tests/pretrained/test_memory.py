"""What loading a model takes: the parameters once and little more, whatever the number of its files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from ftjax.models import CONFIGS, build
from ftjax.models.bert import NAMES as BERT
from ftjax.models.bert import BertConfig

needs_marks = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the high-water mark cannot be reset here"
)

MEASURE = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
import ftjax.pretrained
jax.block_until_ready(jax.numpy.zeros(3) + 1)
import jax.random; jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), (3,))

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the high-water mark starts again from here
before = kilobytes("VmRSS")
loaded = ftjax.pretrained.load_pretrained(sys.argv[1])
peak = kilobytes("VmHWM") - before
values = loaded.params.values()
print(peak * 1024 / sum(value.nbytes for value in values), float(sum(value.sum() for value in values)))
"""


def random_tensors(config, table):
    """Random numbers for all parameters, under the files' names and in their shapes."""
    rng = np.random.default_rng(0)
    tensors = {}
    for ours, shape in build(config).shapes.items():
        theirs, transposed = table.theirs(ours)
        tensors[theirs] = rng.random(shape.shape[::-1] if transposed else shape.shape, np.float32)
    return table.join(tensors)


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    """A BERT of 140 MB whose word embeddings are more than half of it, in one file and in three: the two directories."""
    config = BertConfig(vocab_size=40000, hidden_size=512, num_hidden_layers=5, num_attention_heads=8, intermediate_size=2048)
    tensors = random_tensors(config, BERT)
    single, sharded = tmp_path_factory.mktemp("single"), tmp_path_factory.mktemp("sharded")
    raw = {"model_type": "bert", **{name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}}
    for directory in (single, sharded):
        (directory / "config.json").write_text(json.dumps({**raw, "num_attention_heads": 8, "intermediate_size": 2048}))
    save_file(tensors, single / "model.safetensors")
    names = sorted(tensors)
    weight_map = {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return single, sharded


def ratio_and_sum(path):
    """Peak memory of loading as a multiple of the parameters, and the sum of these, in a process of its own."""
    packages = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(packages)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, env=environment, check=True
    )
    ratio, total = map(float, done.stdout.split())
    return ratio, total


@needs_marks
def test_loading_takes_at_most_a_fifth_more_than_the_parameters(model_files):
    (ratio, total), (other, same) = map(ratio_and_sum, model_files)
    assert 0.9 < ratio <= 1.2 and 0.9 < other <= 1.2, (ratio, other)
    assert total == same


@needs_marks
def test_so_it_does_where_files_keep_matrices_side_by_side(tmp_path):
    raw = {"model_type": "gpt2", "vocab_size": 40000, "n_embd": 512, "n_layer": 5, "n_head": 8}
    config = CONFIGS["gpt2"].from_dict(raw, "config.json")
    tensors = random_tensors(config, CONFIGS["gpt2"].table)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ratio, total = ratio_and_sum(tmp_path)
    assert 0.9 < ratio <= 1.2, ratio
    assert total == pytest.approx(sum(float(array.sum(dtype=np.float64)) for array in tensors.values()), rel=1e-4)


@needs_marks
@pytest.mark.parametrize("quantised", [(), ("token_embd", "ffn")])
def test_so_it_does_from_gguf_as_it_is_and_dequantised(quantised, tmp_path):
    from test_gguf import METADATA, tiny_tensors, write_gguf  # skips the test where the package gguf is missing

    sizes = {"embedding_length": 512, "feed_forward_length": 1024, "block_count": 5, "vocab_size": 40000}
    sizes |= {"attention.head_count": 8, "attention.head_count_kv": 8}
    metadata = METADATA | {f"llama.{name}": value for name, value in sizes.items()}
    raw = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 5, "vocab_size": 40000}
    config = CONFIGS["llama"].from_dict(raw | {"num_attention_heads": 8, "tie_word_embeddings": True}, "config.json")
    rng = np.random.default_rng(0)
    params = {name: rng.random(shape.shape, np.float32) for name, shape in build(config).shapes.items()}
    path = write_gguf(tmp_path / "model.gguf", tiny_tensors(params, heads=8, shared=8), metadata, quantised=quantised)
    ratio, total = ratio_and_sum(path)
    assert 0.9 < ratio <= 1.2, ratio
    assert total == pytest.approx(sum(float(array.sum(dtype=np.float64)) for array in params.values()), rel=1e-3)
