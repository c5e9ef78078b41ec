"""Counting a compiled program: loops by their turns, as the same program without loops; communication; what has no cycles."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.cost import hlo
from ftjax.cost.chips import CHIPS
from ftjax.sharding import data_mesh

TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the compiler for TPUs")


def layers(x, weights, unrolled):
    """tanh(x @ w) for every w of each of two groups: two loops, one in the other, or none."""

    def layer(x, w):
        return jnp.tanh(jnp.dot(x, w, preferred_element_type=jnp.float32)).astype(x.dtype), None

    def group(x, weights):
        return jax.lax.scan(layer, x, weights)

    if not unrolled:
        return jax.lax.scan(group, x, weights)[0]
    for part in weights:
        for w in part:
            x, _ = layer(x, w)
    return x


def counted(unrolled, size=64, device=None):
    """The module of value and gradient of 2 x 5 layers."""
    rows = None if device is None else jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((size, size), jnp.bfloat16 if device else jnp.float32, sharding=rows)
    weights = jax.ShapeDtypeStruct((2, 5, size, size), x.dtype, sharding=rows)
    loss = lambda weights, x: layers(x, weights, unrolled).astype(jnp.float32).sum()  # noqa: E731
    return hlo.parse(jax.jit(jax.value_and_grad(loss)).lower(weights, x).compile().as_text())


def test_loops_within_loops_count_as_often_as_they_turn():
    looped, unrolled = counted(False), counted(True)
    assert any(run.instruction.opcode == "while" for run in hlo.walk(looped))
    assert not any(run.instruction.opcode == "while" for run in hlo.walk(unrolled))
    assert hlo.unknown_loops(looped) == 0
    assert hlo.flops(unrolled) == (10 + 20 - 1) * 2 * 64**3  # nobody reads the gradient of the first layer's input
    assert hlo.flops(looped) == pytest.approx(hlo.flops(unrolled), rel=1 / 29)  # a loop computes it all the same


@TPU
def test_cycles_of_a_loop_on_a_tpu_are_those_of_the_program_without_it(no_cache, monkeypatch):
    from ftjax.cost.topology import devices_of, settle_environment

    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")  # as below, but it ends with the test
    settle_environment("v5e:1x1")
    devices, chip = devices_of("v5e:1x1")
    mesh = data_mesh(devices)

    def cycles(unrolled):
        """Of the dot products; the program with loops also moves what turns save for the backward pass."""
        runs = list(hlo.walk(counted(unrolled, 1024, mesh.devices.flat[0])))
        return sum(r.times * r.instruction.cycles for r in runs if 'dot_general"' in r.instruction.rest and not r.fused)

    looped, unrolled = cycles(False), cycles(True)
    assert looped == pytest.approx(unrolled, rel=0.1)
    assert looped / chip.clock == pytest.approx(30 * 2 * 1024**3 / chip.peak_flops, rel=0.3)


def test_communication_inside_a_loop_counts_as_often_as_it_turns():
    mesh = data_mesh()

    def summed(x):
        return jax.lax.scan(lambda total, row: (total + jax.lax.psum(row, "data"), None), jnp.zeros(64), x)[0]

    step = jax.shard_map(summed, mesh=mesh, in_specs=jax.P(None, "data"), out_specs=jax.P(), check_vma=False)
    module = hlo.parse(jax.jit(step).lower(jax.ShapeDtypeStruct((6, 512), jnp.float32)).compile().as_text())
    (moved,) = hlo.transfers(module)
    assert (moved.kind, moved.times) == ("all-reduce", 6)
    assert moved.bytes == pytest.approx(6 * 2 * 7 / 8 * 64 * 4)


LOOP = """HloModule looped, is_scheduled=true, num_partitions=4

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[8]{0} multiply(%x, %x), backend_config={"estimated_cycles":"100"}
  ROOT %result = (s32[], f32[8]{0}) tuple(%next, %y)
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(8)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]{0}) tuple(%zero, %p)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  %z = f32[8]{0} get-tuple-element(%loop), index=1
  %begun = (f32[8]{0}, f32[32]{0}) all-gather-start(%z), replica_groups={{0,1,2,3}}, dimensions={0}
  %meanwhile = f32[8]{0} add(%z, %z), backend_config={"estimated_cycles":"40"}
  ROOT %done = f32[32]{0} all-gather-done(%begun)
}
"""


def test_a_counter_that_steps_by_two_and_communication_that_hides_behind_what_is_computed():
    module = hlo.parse(LOOP)
    times = hlo.times(module, hlo.Rates(clock=1.0, link_bandwidth=1.0, memory_bandwidth=1.0), {})
    assert times.compute == 4 * 100 + 40
    (moved,) = times.transfers
    assert (moved.kind, moved.blocking, moved.times) == ("all-gather", False, 1)
    assert moved.bytes == moved.seconds == 3 * 8 * 4
    assert moved.exposed == 96 - 40
    assert times.total == 400 + 96


def test_a_collective_that_blocks_adds_its_time():
    text = LOOP.replace("all-gather-start", "all-gather").replace("= (f32[8]{0}, f32[32]{0}) all", "= f32[32]{0} all")
    text = text.replace("all-gather-done(%begun)", "copy(%begun)")
    times = hlo.times(hlo.parse(text), hlo.Rates(1.0, 1.0, 1.0), {})
    assert times.total == 400 + 96 + 40
    assert times.transfers[0].exposed == 96


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("%r = f32[64]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%sum", 2 * 256 * 3 / 4),
        ("%r = f32[16]{0} reduce-scatter(%p), replica_groups=[1,4]<=[4], dimensions={0}", 256 * 3 / 4),
        ("%r = f32[256]{0} all-gather(%p), replica_groups={}, dimensions={0}", 3 * 256),
        ("%r = f32[64]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", 256),
        ("%r = f32[64]{0} all-to-all(%p), replica_groups={{0,1,2,3}}, dimensions={0}", 64 * (1 + 2 + 1)),
    ],
)
def test_bytes_over_the_links_of_one_device(line, sent):
    head = "HloModule m, num_partitions=4\n\nENTRY %main (p: f32[64]) -> f32[64] {\n  %p = f32[64]{0} parameter(0)\n"
    text = f"{head}  {line}\n}}\n"
    (moved,) = hlo.transfers(hlo.parse(text))
    assert moved.bytes == sent


def test_random_bits_and_gathers_are_counted_in_bytes_and_kernels_are_named():
    text = """HloModule m

ENTRY %main (p: f32[100,8], i: s32[4,1]) -> f32[4,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[4,1]{1,0} parameter(1)
  %bits = (u64[2]{0}, u32[1000]{0}) rng-bit-generator(%p), algorithm=rng_default
  %kernel = f32[4,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"body":"TUzv","rest":"a
}} } b"}
  ROOT %rows = f32[4,8]{1,0} gather(%p, %i), offset_dims={1}
}
"""
    times = hlo.times(hlo.parse(text), hlo.Rates(1.0, 1.0, 1.0), {})
    assert times.memory == times.total == (16 + 4000) + 2 * 128
    assert times.uncounted == {"tpu_custom_call": 1}
    assert hlo.kernels(hlo.parse(text)) == {"kernel": "TUzv"}
    moved = 3200 + 128  # what it reads and writes
    for cycles, seconds in ((30, moved), (10_000, 5_000)):
        with_kernel = hlo.times(hlo.parse(text), hlo.Rates(2.0, 1.0, 1.0), {"kernel": cycles, "another": 7})
        assert with_kernel.kernels == with_kernel.compute == seconds
        assert with_kernel.total == times.total + seconds
        assert with_kernel.uncounted == {}


def test_peaks_are_what_the_units_do_at_the_clock():
    units = {"v3": 2, "v4": 8, "v5e": 4, "v5p": 8, "v6e": 16}
    for name, number in units.items():
        chip = CHIPS[name]
        np.testing.assert_allclose(number * 128 * 128 * 2 * chip.clock, chip.peak_flops, rtol=0.03)
