"""The process that compiles: the same programs, whatever happens to it, and only where it is of use."""

import importlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from ftjax import compiler, launch
from ftjax.cli import main

PLACE = importlib.import_module(compiler.COMPILES[0])
pytestmark = pytest.mark.skipif(not launch.huge_pages_possible(), reason="is started on Linux with glibc 2.35 or newer")


@pytest.fixture
def settings():
    """Sets what JAX keeps and where; afterwards it is as before."""
    before = {}

    def update(**values):
        for name, value in values.items():
            before.setdefault(name, getattr(jax.config, name))
            jax.config.update(name, value)
        reset_cache()  # or it goes by what it was when first used

    yield update
    update(**before)


@pytest.fixture
def large(monkeypatch):
    """Everything is large enough for the other process."""
    monkeypatch.setattr(compiler, "SMALLEST_PROGRAM", 0)
    monkeypatch.setattr(compiler, "SMALLEST_MODEL", 1)
    monkeypatch.setattr(launch, "one_heap", lambda: True)


@pytest.fixture
def no_cache(settings, large):
    """Nothing is found compiled."""
    settings(jax_enable_compilation_cache=False)


@pytest.fixture
def asked(monkeypatch):
    """For every program that a `Compiler` was asked for, whether it gave it."""
    found, ask = [], compiler.Compiler.__call__

    def recorded(self, module, options):
        program = ask(self, module, options)
        found.append(program is not None)
        return program

    monkeypatch.setattr(compiler.Compiler, "__call__", recorded)
    return found


def gradients(x):
    """Of something with a loop, a product and random numbers in it."""

    def loss(x):
        noise = jax.random.normal(jax.random.key(0), x.shape)
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ x) + noise, x).sum()

    return jax.jit(jax.value_and_grad(loss))(x)


def test_jax_compiles_in_the_place_where_the_other_process_is_put():
    assert compiler.as_known()


def test_a_program_from_the_other_process_gives_the_same_numbers(no_cache, asked, tmp_path):
    x = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    here = gradients(x)
    jax.clear_caches()
    (tmp_path / "weights").write_bytes(b"12")
    before = getattr(PLACE, compiler.COMPILES[1])
    with compiler.elsewhere(str(tmp_path)):
        there = gradients(x)
    assert asked and all(asked)
    assert getattr(PLACE, compiler.COMPILES[1]) is before
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_what_came_from_the_other_process_is_found_by_the_next_one(large, settings, asked, tmp_path):
    settings(jax_compilation_cache_dir=str(tmp_path), jax_persistent_cache_min_compile_time_secs=0.0)
    x = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    jax.clear_caches()
    with compiler.elsewhere("no/such/model"):
        first = gradients(x)
        assert asked and all(asked)
        asked.clear()
        jax.clear_caches()
        second = gradients(x)
    assert asked == []
    jax.tree.map(np.testing.assert_array_equal, first, second)


def children():
    return {*map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())}


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_process_that_is_killed_leaves_the_work_to_this_one(no_cache, asked, when):
    programs = [jax.jit(lambda x, i=i: x + i).lower(np.float32(1)) for i in range(3)]
    before = children()
    with compiler.elsewhere("no/such/model"):
        (child,) = children() - before
        found = [programs[0].compile()] if when == "between" else []
        os.kill(child, signal.SIGKILL)
        found += [program.compile() for program in programs[len(found) :]]
    assert asked == [when == "between", False, False]
    assert [float(np.asarray(program(np.float32(1)))) for program in found] == [1, 2, 3]


def test_an_error_of_the_compiler_is_met_here(no_cache, asked):
    with compiler.elsewhere("no/such/model"), pytest.raises(jax.errors.JaxRuntimeError, match="no_such_target"):
        jax.jit(lambda x: jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct((), jnp.float32))(x))(1.0)


def test_programs_of_several_devices_with_callbacks_or_small_are_compiled_here(no_cache, asked, monkeypatch):
    with compiler.elsewhere("no/such/model"):
        mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
        spread = jax.NamedSharding(mesh, jax.P("data"))
        jax.jit(lambda x: x * 2, in_shardings=spread).lower(np.zeros(4, np.float32)).compile()
        jax.jit(lambda x: jax.pure_callback(np.sin, x, x)).lower(np.float32(1)).compile()
        monkeypatch.setattr(compiler, "SMALLEST_PROGRAM", 10**9)
        jax.jit(lambda x: x * 3).lower(np.float32(1)).compile()
    assert asked == []


def test_another_jax_compiles_as_it_always_does(no_cache, asked, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(PLACE, compiler.COMPILES[1], lambda backend, module, something_new: None)
        patched.setattr(compiler, "Compiler", None)
        with compiler.elsewhere("no/such/model"):
            pass
        patched.delattr(PLACE, compiler.COMPILES[1])
        with compiler.elsewhere("no/such/model"):
            pass


def test_it_is_worth_a_process_for_large_models_in_a_process_of_our_own(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "one_heap", lambda: True)
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    file = tmp_path / "large.gguf"
    with file.open("wb") as large:
        large.truncate(compiler.SMALLEST_MODEL)
    assert compiler.worthwhile("owner/name")
    assert compiler.worthwhile(str(file))
    assert compiler.worthwhile(str(tmp_path))
    file.unlink()
    assert not compiler.worthwhile(str(tmp_path))
    (tmp_path / "broken").symlink_to("nowhere")
    assert not compiler.worthwhile(str(tmp_path))
    assert not compiler.worthwhile("x" * 5000)
    monkeypatch.setattr(launch, "one_heap", lambda: False)
    assert not compiler.worthwhile("owner/name")


@pytest.mark.parametrize("command", ["train", "compare", "benchmark"])
def test_training_compiles_elsewhere(command, no_cache, asked, tiny_bert, few_reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "SMALLEST_PROGRAM", 60_000)
    flags = {
        "train": ("--train-file", few_reviews["train"], "--epochs", "1", "--output", tmp_path / "out"),
        "compare": ("--train-file", few_reviews["train"], "--methods", "full", "--epochs", "1", "--output", tmp_path / "out"),
        "benchmark": ("--steps", "2", "--train-file", few_reviews["train"]),
    }[command]
    sizes = ("--max-length", "32", "--batch-size", "8", "--mesh", "data=1")
    main([str(a) for a in (command, "--model", tiny_bert, *flags, *sizes)])
    assert asked and all(asked)


def test_the_process_ends_with_the_one_that_asks():
    script = """
import os, sys
from ftjax.compiler import Compiler
process = Compiler()
print(process._process.pid, flush=True)
sys.stdin.readline()
os._exit(0)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        pid = int(asking.stdout.readline())
        handle = os.pidfd_open(pid)
        asking.stdin.write("\n")
        asking.stdin.flush()
        assert select.select([handle], [], [], 60)[0]
        os.close(handle)
