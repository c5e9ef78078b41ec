"""What loading a model takes: the parameters once and little more, whatever the number of its files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from ftjax.models import build
from ftjax.models.bert import BertConfig
from ftjax.pretrained.names import BERT

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


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    """A BERT of 140 MB whose word embeddings are more than half of it, in one file and in three: the two directories."""
    config = BertConfig(vocab_size=40000, hidden_size=512, num_hidden_layers=5, num_attention_heads=8, intermediate_size=2048)
    rng = np.random.default_rng(0)
    tensors = {}
    for ours, shape in build(config).shapes.items():
        theirs, transposed = BERT.theirs(ours)
        tensors[theirs] = rng.random(shape.shape[::-1] if transposed else shape.shape, np.float32)
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


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the high-water mark cannot be reset here")
def test_loading_takes_at_most_a_fifth_more_than_the_parameters(model_files):
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    sums = []
    for directory in model_files:
        command = [sys.executable, "-c", MEASURE, str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        ratio, total = map(float, done.stdout.split())
        assert 0.9 < ratio <= 1.2, ratio
        sums.append(total)
    assert sums[0] == sums[1]
