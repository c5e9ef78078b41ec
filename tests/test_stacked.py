"""Layers as a loop over stacked parameters: what is compiled does not grow with depth, and ends where layer by layer does."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from conftest import fail, random_params, run_command
from decoders import FAMILIES, SMALL, write_decoder
from safetensors.numpy import load_file
from test_decoder_commands import FLAGS, letters
from test_generate import write_tokenizer
from test_resume import interrupt, logged

from ftjax import sharding
from ftjax.cli import main
from ftjax.config import PlanConfig
from ftjax.cost.bare import bare_run, random_rows, step_arguments
from ftjax.cost.benchmark import full_batch
from ftjax.models import CONFIGS, build
from ftjax.optimizer import adafactor
from ftjax.prefix import FrozenPrefix, Limits
from ftjax.stacked import alike, is_stack, members, stack, stack_of, unstack
from ftjax.step import kept_in, train_step

LLAMA = {**SMALL, "model_type": "llama", "num_hidden_layers": 4, "tie_word_embeddings": True}
LM, CLASSES = {"task": "causal-lm"}, {}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Depth -> the directory of a tiny random Llama."""
    found = {layers: tmp_path_factory.mktemp(f"llama-{layers}") for layers in (4, 12)}
    for layers, directory in found.items():
        write_decoder(directory, LLAMA | {"num_hidden_layers": layers})
    return found


def run_of(directory, devices=1, **settings):
    """A run with random parameters that makes an update an epoch."""
    small = {"topology": "cpu", "batch_size": 8, "max_length": 16, "epochs": 3, "learning_rate": 1e-2, "dropout": 0.1}
    config = PlanConfig(model=str(directory), **small | settings)
    run = bare_run(config, random_rows(8, 16, 96, 2), jax.devices()[:devices], None, lambda line: None)
    return dataclasses.replace(run, pretrained=dataclasses.replace(run.pretrained, params=random_params(run.pretrained.model)))


def test_names_go_there_and_back():
    facts = {f"decoder.layers.{i}.{part}": kind for i, kind in enumerate("aabbbcd") for part in ("mlp.up.kernel", "norm.scale")}
    facts |= {"decoder.norm.scale": "a", "decoder.layers.1.mlp.lora_a": "a", "encoder.layers.0.norm.scale": "a"}
    assert alike(facts, 7) == (range(2, 5),)  # one more parameter tells layers apart
    assert alike(facts, 4) == (range(2, 4),)
    stacks = (range(1, 3), range(9, 12))
    assert stack_of("decoder.layers.10.mlp.up.kernel", stacks) == "decoder.layers.9-11.mlp.up.kernel"
    assert members("decoder.layers.9-11.mlp.up.kernel") == [f"decoder.layers.{i}.mlp.up.kernel" for i in (9, 10, 11)]
    assert members("teacher.decoder.layers.1-2.b") == ["teacher.decoder.layers.1.b", "teacher.decoder.layers.2.b"]
    for name in ("decoder.layers.0.b", "decoder.layers.3.b", "decoder.norm.scale", "encoder.layers.1.b"):
        assert stack_of(name, stacks) == name and members(name) == [name]
    rng = np.random.default_rng(0)
    params = {f"decoder.layers.{i}.{n}": rng.standard_normal((3, 2)) for i in rng.permutation(13) for n in ("a", "b.c")}
    params |= {"decoder.norm.scale": rng.standard_normal(3)}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    stacked = stack(params, stacks)
    assert len(stacked) == len(params) - 2 * (1 + 2) and stacked["decoder.layers.9-11.b.c"].shape == (3, 3, 2)
    assert {*stack(stacked, stacks)} == {*stacked}
    again = unstack(stacked)
    assert again.keys() == params.keys()
    assert all(np.array_equal(value, params[name]) for name, value in again.items())


@pytest.mark.parametrize("spec", ["all", "lora:2"])
def test_the_whole_step_does_not_grow_with_depth(spec, llamas):
    sizes = []
    for layers, directory in llamas.items():
        run = run_of(directory, **LM, method="partial", train_parameters=spec, scan_layers=True)
        assert run.stages[0].model.stacks == (range(layers),)
        state, frozen, batch = step_arguments(run)
        state = dataclasses.replace(state, frozen=frozen)
        jaxpr, lowered = jax.make_jaxpr(train_step)(state, batch), jax.jit(train_step).lower(state, batch)
        sizes.append([str(jaxpr).count(" = "), lowered.as_text().count(" = "), len(jax.tree.leaves(state))])
    assert sizes[0] == sizes[1]


def trained(run):
    """(state after all stages, metrics of every step), by the real step."""
    state, history = None, []
    for number, stage in enumerate(run.stages):
        state, program = run.state_of(number, state), run.train_program()
        batch = full_batch(dataclasses.replace(run, stages=(stage,)))
        if state.teacher:
            batch["labels"][:4] = -100  # rows for the teacher to tell about
        ends = [stage.from_step for stage in run.stages[1:]] + [run.steps]
        for _ in range(stage.from_step, ends[number]):
            new, metrics = program(dataclasses.replace(state, frozen={}), state.frozen, batch)
            state = dataclasses.replace(new, frozen=state.frozen)
            history.append(jax.tree.map(float, metrics))
    return state, history


CASES = {
    "full": (LM, (range(4),)),
    "a classifier reads the last layer apart": (CLASSES, (range(3),)),
    "frozen layers with their dropout, then what trains": (
        LM | {"method": "partial", "train_parameters": "last:2", "frozen_dropout": True},
        (range(2), range(2, 4)),
    ),
    "a frozen prefix": (CLASSES | {"method": "partial", "train_parameters": "last:2,head"}, (range(2),)),
    "low rank, kernels in 4 bits": (
        LM | {"method": "partial", "train_parameters": "lora:2", "dora": True, "base_bits": 4, "precision": "bfloat16"},
        (range(4),),
    ),
    "every layer its learning rate": (LM | {"layer_decay": 0.5}, ()),
    "adafactor": (LM | {"optimizer": "adafactor"}, (range(4),)),
    "stages": (
        LM | {"method": "partial", "train_parameters": "last:1", "unfreeze": ("1=last:2", "2=all")},
        (range(2),),
    ),
    "mean teacher": (
        CLASSES | {"method": "self-supervised", "self_supervised_loss": ("consistency",), "teacher_decay": 0.9},
        (range(3),),
    ),
    "microbatches, kept by no layer": (LM | {"gradient_accumulation": 2, "remat": "full"}, (range(4),)),
    "fsdp": (LM | {"mesh": "data=2,fsdp=4"}, (range(4),)),
    "fsdp, adafactor": (LM | {"mesh": "data=2,fsdp=4", "optimizer": "adafactor"}, (range(4),)),
    "zero1": (LM | {"mesh": "data=8"}, (range(4),)),
    "tensor": (LM | {"mesh": "data=2,tensor=2"}, (range(4),)),
}
"""What is done -> (settings, which layers that stacks)."""
SHORT = ("full", "a classifier reads the last layer apart", "stages")


@pytest.mark.parametrize("case", [case if case in SHORT else pytest.param(case, marks=pytest.mark.long) for case in CASES])
def test_it_ends_where_layer_by_layer_does(case, llamas, monkeypatch, request):
    settings, stacks = CASES[case]
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    if "tensor" in case:
        request.getfixturevalue("no_cache")
    devices = 4 if "tensor" in case else 8 if "mesh" in settings else 1
    runs = [run_of(llamas[4], devices, scan_layers=scan, **settings) for scan in (False, True)]
    assert {stage.model.stacks for stage in runs[0].stages} == {()}
    assert {stage.model.stacks for stage in runs[1].stages} == {stacks}
    (plain, metrics), (looped, others) = map(trained, runs)
    coarse = settings.get("precision") == "bfloat16"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2 if coarse else 1e-5, atol=1e-6), metrics, others)
    assert len(others) == 3
    for tree, other in ((plain.trainable, looped.trainable), (plain.frozen, looped.frozen), (plain.teacher, looped.teacher)):
        other = unstack(jax.device_get(other))
        assert tree.keys() == other.keys()
        for name, value in tree.items():
            assert other[name].dtype == value.dtype, name
            close = {"rtol": 2e-3, "atol": 2e-3} if coarse else {"rtol": 1e-4, "atol": 2e-5}
            np.testing.assert_allclose(np.asarray(other[name], float), np.asarray(value, float), **close, err_msg=name)
    for name, value in looped.params.items():  # every layer lies as it would alone
        alone = plain.params[members(name)[0]]
        assert value.addressable_shards[0].data.shape[is_stack(name) :] == alone.addressable_shards[0].data.shape, name


def test_adafactor_goes_by_single_layers_however_many_are_stacked():
    """More layers than features: the largest dimensions of the stack are not those of the matrix."""
    rng = np.random.default_rng(0)
    names = [f"decoder.layers.{i}.{part}" for i in range(9) for part in ("kernel", "bias")]
    draw = lambda: {n: rng.standard_normal((6, 4) if n.endswith("kernel") else 6).astype(np.float32) for n in names}  # noqa: E731
    params, gradients, stacks = draw(), [draw() for _ in range(2)], (range(9),)
    found = []
    for change in (dict, lambda tree: stack(tree, stacks)):
        values = change(params)
        optimizer = adafactor(values, 0.1, max_gradient_norm=1.0, min_dim_size_to_factor=4)
        state, update = jax.jit(optimizer.init)(values), jax.jit(optimizer.update)
        with jax.numpy_dtype_promotion("standard"):
            for gradient in gradients:
                updates, state = update(change(gradient), state, values)
        found.append(unstack(updates))
    for name in names:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5, err_msg=name)


def test_a_stack_of_vectors_stays_float32():
    vectors = jax.ShapeDtypeStruct((4, 16), np.float32)
    assert kept_in("decoder.layers.0-3.attention_norm.scale", vectors, "bfloat16") == np.float32
    assert kept_in("decoder.embeddings.word.embedding", vectors, "bfloat16") == "bfloat16"


def test_a_prefix_cache_is_of_every_layer_in_it():
    model = build(CONFIGS["llama"].from_dict(LLAMA, "config.json"), num_labels=2, scan=True)
    model = model.freeze({name for name in model.shapes if ".layers.2." in name or ".layers.3." in name})
    assert model.stacks == (range(2),) and model.prefix_layers == 2
    params, rows = stack(random_params(model), model.stacks), random_rows(8, 16, 96, 2)

    def path(params):
        size = {"buckets": (16,), "batch_size": 8, "pad_token_id": 0}
        return FrozenPrefix(model, params, None, **size, limits=Limits(), uses=2).path(rows)

    for name, same in (("decoder.layers.0-1.mlp.up.kernel", False), ("decoder.layers.2.mlp.up.kernel", True)):
        changed = params | {name: params[name].at[1].add(1e-3)}
        assert (path(changed) == path(params)) == same


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A tiny random Llama with a tokenizer."""
    directory = tmp_path_factory.mktemp("speaker")
    write_decoder(directory, FAMILIES["llama"] | {"num_hidden_layers": 5})
    write_tokenizer(directory)
    return directory


@pytest.mark.long
def test_what_a_run_writes_is_as_ever(speaker, tmp_path, capsys):
    rows, output = letters(tmp_path / "train.csv", 32, 0), tmp_path / "looped"
    arguments = ["train", "--model", speaker, "--train-file", rows, "--eval-file", rows, *FLAGS]
    arguments += ["--method", "partial", "--train-parameters", "last:3,head", "--learning-rate", "1e-3"]
    arguments += ["--epochs", 2, "--prefix-cache", "disk"]  # of layers 0 and 1; 2 and 3 are another stack
    results = []
    for directory, more in ((output, ["--scan-layers"]), (tmp_path / "plain", [])):
        main([str(a) for a in (*arguments, "--output", directory, *more)])
        results.append(json.loads(capsys.readouterr().out))
    for name in ("trained_parameters", "frozen_parameters"):
        assert results[0][name] == results[1][name]
    assert results[0]["eval"]["loss"] == pytest.approx(results[1]["eval"]["loss"], rel=1e-5)
    looped, plain = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("looped", "plain"))
    assert looped.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(looped[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    main(["export", "--checkpoint", str(output), "--output", str(tmp_path / "exported")])
    capsys.readouterr()
    same = [directory / "model.safetensors" for directory in (output / "model", tmp_path / "exported")]
    assert same[0].read_bytes() == same[1].read_bytes()
    (output / "result.json").unlink()  # as if it had ended before
    said = fail(capsys, *arguments, "--output", output, "--resume")
    assert "holds another run: its --scan-layers is True, not False" in said


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_bytes(speaker, tmp_path):
    rows = letters(tmp_path / "train.csv", 64, 0)
    arguments = ["train", "--model", speaker, "--train-file", rows, "--eval-file", rows, "--scan-layers", "--resume"]
    arguments += ["--method", "partial", "--train-parameters", "lora:2,head", "--unfreeze", "1=last:2,lora:2,head"]
    arguments += ["--max-length", 16, "--batch-size", 4, "--epochs", 3, "--save-every", 3, "--log-every", 1, "--buckets", 1]
    done = run_command(*arguments, "--output", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    status, stderr = interrupt(arguments, tmp_path / "killed", signal.SIGKILL, logged(tmp_path / "killed", 24))
    assert status == -signal.SIGKILL, stderr
    done = run_command(*arguments, "--output", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    models = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed")]
    assert models[0].read_bytes() == models[1].read_bytes()
