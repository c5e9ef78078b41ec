"""fsdp and tensor: every mesh of eight devices ends where one device does, and nobody holds more than a few layers whole."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_batch, random_params, tiny_config

from ftjax import sharding
from ftjax.config import TrainConfig
from ftjax.data.batches import batches
from ftjax.errors import InputError
from ftjax.models import Lora, build, with_4bit, with_lora
from ftjax.models.llama import LlamaConfig
from ftjax.objectives import Term
from ftjax.objectives.causal_lm import CausalLM
from ftjax.objectives.classification import Classification
from ftjax.objectives.contrastive import DropoutPairs, LabelPairs
from ftjax.objectives.masked_lm import MaskedLM
from ftjax.optimizer import adafactor, adamw
from ftjax.parallel import Compiled, parallel_step
from ftjax.partition import label
from ftjax.prepare import prepare
from ftjax.pretrained import load_pretrained
from ftjax.sharding import Layout, make_mesh, read_mesh
from ftjax.step import apart, create_state


@pytest.fixture(autouse=True)
def cut_small_arrays(monkeypatch):
    """The tests' models are tiny: let their matrices be cut."""
    monkeypatch.setattr(sharding, "SMALLEST", 64)


def encoder(spec="all", microbatches=1, losses=("classification",), factored=False, **config):
    model = build(tiny_config(**config), num_labels=2, masked_lm=True)
    known = {
        "classification": Classification(model),
        "masked_lm": MaskedLM(model, 4, (0, 1, 2, 3, 4)),
        "contrastive": DropoutPairs(model),
        "label_pairs": LabelPairs(model),
    }
    return state_of(model, [Term(name, 0.5, known[name]) for name in losses], spec, microbatches, factored)


def decoder(spec="all", microbatches=1, scan=False, lora=False, layers=2):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "max_position_embeddings": 32}
    config = LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=4, **sizes)
    model = build(config, causal_lm=True, scan=scan)
    if lora:
        modules = tuple(f"decoder.layers.{i}.attention.{name}" for i in range(2) for name in ("query", "value"))
        frozen = (*modules, *(f"decoder.layers.{i}.mlp.{name}" for i in range(2) for name in ("up", "down")))
        model = with_lora(with_4bit(model, frozen), Lora(8, 16.0, modules, dora=True))
    return state_of(model, [Term("causal_lm", 1.0, CausalLM(model, block=16))], spec, microbatches)


def state_of(model, terms, spec, microbatches, factored=False):
    params = random_params(model)
    labels = label(params, spec, layers=model.config.num_hidden_layers)
    names = [name for name, found in labels.items() if found == "trained"]
    if factored:
        optimizer = adafactor(names, 1e-3, max_gradient_norm=1e-2, min_dim_size_to_factor=4)
    else:
        optimizer = adamw(names, 1e-3, max_gradient_norm=1e-2, eps=1e-3)
    return create_state(params, labels, tuple(terms), optimizer, microbatches=microbatches)


def packed_batch(rows, seed=0, length=16):
    """Rows of two documents each, the second of a random length, some padding after it."""
    rng = np.random.default_rng(seed)
    batch = random_batch(rows=rows, length=length, seed=seed)
    first, last = rng.integers(2, 8, rows), rng.integers(9, length + 1, rows)
    places = np.arange(length)
    batch["segment_ids"] = np.where(places < first[:, None], 1, np.where(places < last[:, None], 2, 0)).astype(np.int32)
    batch["attention_mask"] = (batch["segment_ids"] > 0).astype(np.int32)
    return batch


def trained(make, mesh, batches):
    """(state, metrics of every step) on a mesh."""
    layout = Layout(mesh)
    step = Compiled(parallel_step(layout), mesh, donate=True)
    state, history = layout.place(make()), []
    for batch in batches:
        state, metrics = step(state, batch)
        history.append(jax.tree.map(float, metrics))
    return state, history


CASES = {
    "full, 2 microbatches": (lambda: encoder(microbatches=2), "data=2,fsdp=4"),
    "full, heads and features split": (lambda: encoder(microbatches=2), "fsdp=4,tensor=2"),
    "partial, factored": (lambda: encoder("last:1,head", factored=True), "fsdp=8"),
    "self-supervised": (lambda: encoder(losses=("classification", "masked_lm"), microbatches=2), "data=2,fsdp=4"),
    "rows compared": (lambda: encoder(losses=("contrastive", "label_pairs")), "data=2,fsdp=4"),
    "packed": (lambda: decoder(microbatches=2), "data=2,fsdp=4"),
    "packed, heads and features split": (decoder, "data=2,fsdp=2,tensor=2"),
    "packed, low rank in 4 bits, layers as a loop": (lambda: decoder("lora:8", scan=True, lora=True), "fsdp=8"),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_every_mesh_ends_where_one_device_does(case, request):
    make, text = CASES[case]
    if "tensor" in text:
        request.getfixturevalue("no_cache")
    if case.startswith("packed"):
        batches = [packed_batch(16, seed) for seed in range(2)]
    else:
        batches = [random_batch(rows=16, seed=seed, unlabeled=5) for seed in range(2)]
        batches[-1]["example_ids"][-3:], batches[-1]["labels"][-3:], batches[-1]["attention_mask"][-3:] = -1, -100, 0
    one, metrics = trained(make, make_mesh({}, jax.devices()[:1]), batches)
    many, metrics_of_mesh = trained(make, make_mesh(read_mesh(text, 8)), batches)
    close = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=2e-6)  # noqa: E731
    jax.tree.map(close, metrics, metrics_of_mesh)
    # The gradient of a key's bias is 0 but for rounding, of which Adafactor makes a step of full length
    zero = [name for name in one.params if name.endswith(".key.bias") and "factored" in case]
    jax.tree.map(close, *({n: v for n, v in state.params.items() if n not in zero} for state in (one, many)))
    parts = [value for value in many.params.values() if value.ndim == 2 and not value.sharding.is_fully_replicated]
    assert len(parts) > 10
    moments = jax.tree.leaves(many.optimizer_state)
    assert {leaf.sharding.spec for leaf in moments if leaf.ndim == 2} <= {
        value.sharding.spec for value in many.trainable.values()
    }


def lowered(make, text, batch):
    """The real step, before the compiler has seen it."""
    layout = Layout(make_mesh(read_mesh(text, 8)))
    state = jax.eval_shape(make)
    placed = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, layout.shardings(state)
    )
    step = jax.jit(apart(parallel_step(layout)), donate_argnums=0)
    return step.lower(dataclasses.replace(placed, frozen={}), placed.frozen, batch), state


def gathers(text):
    """The shapes that all-gathers in a program's text give."""
    return [tuple(map(int, shape.split(","))) for shape in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)]


def test_over_fsdp_layers_are_gathered_one_by_one_and_gradients_summed_in_parts():
    make = functools.partial(decoder, scan=True, layers=8)
    step, state = lowered(make, "fsdp=8", packed_batch(8))
    program = step.compile()
    entry = program.as_text().partition("\nENTRY ")[2]
    loops = program.as_text()[: -len(entry)]
    assert len(gathers(loops)) >= 7 * 2  # the matrices of a layer, in the loop forward and in the one backward
    assert not any(shape[-2:] == (16, 32) for shape in gathers(entry))  # and none before or after them
    assert len(re.findall(r" reduce-scatter\(", loops)) >= 7
    assert not re.search(r"= \(?f32\[\d+,\d+\]\S* all-reduce", program.as_text())  # no matrix is summed whole
    whole = 4 * sum(value.size for value in state.trainable.values())
    assert program.memory_analysis().argument_size_in_bytes < 0.2 * 3 * whole


def test_what_was_gathered_is_gathered_again_in_the_backward_pass():
    step, state = lowered(encoder, "fsdp=8", random_batch(rows=16))
    kernels = sum(name.startswith("encoder.layers.") and name.endswith("kernel") for name in state.trainable)
    assert step.as_text().count("stablehlo.all_gather") >= 2 * kernels - 2  # not where no gradient needs it


def test_the_data_axis_sums_gradients_once_whatever_the_microbatches():
    step, _ = lowered(functools.partial(encoder, microbatches=4), "data=2,fsdp=4", random_batch(rows=32, length=8))
    text = step.compile().as_text()
    pairs = r"replica_groups=(\{\{0,4\}|\[4,2\]<=\[2,4\]T\(1,0\))"  # of devices that differ in their place along data alone
    entry = text.partition("\nENTRY ")[2]
    assert len(re.findall(rf" all-reduce\([^\n]*{pairs}", text)) == len(re.findall(rf" all-reduce\([^\n]*{pairs}", entry)) > 0


def test_meshes_and_their_mistakes():
    assert read_mesh("data=2,fsdp=4", 8) == {"data": 2, "fsdp": 4}
    assert make_mesh({"fsdp": 4, "tensor": 2}).shape == {"data": 1, "fsdp": 4, "tensor": 2}
    for text, said in (
        ("dta=8", "Did you mean 'data'"),
        ("data", "AXIS=NUMBER"),
        ("data=0", "AXIS=NUMBER"),
        ("data=2,data=4", "given twice"),
        ("data=2,fsdp=8", "takes 16 devices; there are 8"),
    ):
        with pytest.raises(InputError, match=said):
            read_mesh(text, 8)
    with pytest.raises(InputError, match="takes 4 devices; there are 8"):
        read_mesh("data=4", 8, processes=2)


@pytest.mark.parametrize("changes", ({"sharding": "replicated"}, {"parallel": "pmap"}, {"mesh": "data=4,tensor=2"}))
def test_a_reduce_dtype_without_effect_is_refused(tiny_bert, few_reviews, tmp_path, changes):
    with pytest.raises(InputError, match="--reduce-dtype bfloat16: is for gradients of which every device gets a part"):
        prepared(tiny_bert, few_reviews, tmp_path, reduce_dtype="bfloat16", **changes)


def test_a_part_reads_as_the_whole_and_its_gradient_is_a_part_of_the_sum():
    from ftjax.zero import whole

    mesh = make_mesh({"fsdp": 8})
    value = jnp.arange(64.0).reshape(16, 4)

    def loss(part, rows):
        return (whole(part, 0, "float32") * rows.sum()).sum()

    found = jax.shard_map(
        jax.grad(loss), mesh=mesh, in_specs=(jax.P("fsdp"), jax.P("fsdp")), out_specs=jax.P("fsdp"), check_vma=False
    )(value, jnp.arange(8.0))
    np.testing.assert_allclose(np.asarray(found), np.full((16, 4), 28.0))


def prepared(model, rows, tmp_path, **changes):
    small = {"batch_size": 16, "max_length": 16, "buckets": 1, "epochs": 1}
    config = TrainConfig(model=str(model), train_file=rows["train"], output=tmp_path / "run", **{**small, **changes})
    return prepare(config, lambda line: None)


def test_weights_are_read_into_their_shards_on_the_host_and_go_to_the_devices_in_parts(tiny_bert, few_reviews, tmp_path):
    run = prepared(tiny_bert, few_reviews, tmp_path, mesh="fsdp=8")
    plain = load_pretrained(tiny_bert).params
    state = run.state_of(0)
    cut = run.layout.cuts(state.trainable)
    assert len(cut) > 10
    for name, value in run.pretrained.params.items():
        held = value.addressable_shards[0].data.size if name in plain else 0
        assert not held or (value.sharding.memory_kind, held) == ("pinned_host", value.size // (8 if name in cut else 1))
        assert name not in plain or np.array_equal(np.asarray(state.trainable[name]), np.asarray(plain[name]))
        assert state.trainable[name].sharding.memory_kind != "pinned_host"


def test_the_step_of_train_by_pmap_equals_that_by_jit(tiny_bert, few_reviews, tmp_path):
    found = []
    for changes in ({"parallel": "pmap"}, {"sharding": "replicated"}):
        run = prepared(tiny_bert, few_reviews, tmp_path, **changes)
        program, state = run.train_program(), run.state_of(0)
        data = run.data
        for batch in batches(data.train, data.buckets, 16, pad_token_id=0, seed=0):
            new, metrics = program(dataclasses.replace(state, frozen={}), state.frozen, batch)
            state = dataclasses.replace(new, frozen=state.frozen)
        assert all(value.sharding.is_fully_replicated for value in state.trainable.values())
        found.append((jax.tree.map(float, metrics), jax.device_get(state.params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6), *found)
