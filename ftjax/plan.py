"""Does a run fit, how fast is it, what does it cost: read off the very step that training compiles, without the chips."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftjax import hlo
from ftjax.bare import bare_run, full_rows, step_arguments
from ftjax.benchmark import matmul_flops
from ftjax.chips import Chip
from ftjax.config import PlanConfig
from ftjax.data.batches import make_batch
from ftjax.errors import InputError
from ftjax.flops import FORMULA, model_flops, program_flops
from ftjax.objectives import average, measure
from ftjax.parallel import DATA, Compiled, check_batch_size
from ftjax.prefix import prefix_step
from ftjax.prepare import Run
from ftjax.step import train_step
from ftjax.topology import mesh_of

Say = Callable[[str], None]

COST_MODEL = "predicted by the XLA:TPU cost model"
ROOFLINE = (
    "a lower bound: dot products at the rate that large ones reach on this machine; see ftjax benchmark for the real time"
)


def plan(config: PlanConfig, say: Say) -> dict[str, Any]:
    """What --json prints. Raises InputError for a user's mistake, before anything is compiled where that can be told."""
    config.check()
    mesh, chip = mesh_of(config.topology)
    if config.search:
        return search(config, mesh, chip, say)
    return examine(config, mesh, chip, say)


def search(config: PlanConfig, mesh: Mesh, chip: Chip | None, say: Say) -> dict[str, Any]:
    """The plan that trains the most examples a second among those that fit, with all that were tried under "search".

    For every sharding, with and without remat, the batch doubles from --batch-size on until it no longer fits or brings
    less than 1 %.
    """
    tried: list[dict[str, Any]] = []
    shardings = ("zero1", "replicated") if mesh.size > 1 else ("replicated",)
    for remat, sharding in [(remat, sharding) for remat in (False, True) for sharding in shardings]:
        size, before = config.batch_size, 0.0
        while True:
            found = examine(dataclasses.replace(config, batch_size=size, remat=remat, sharding=sharding), mesh, chip, say)
            tried.append(found)
            rate = found["predicted_examples_per_second"] or 0.0
            say(
                f"batch {size}, {sharding}{', remat' if remat else ''}: "
                + (f"{rate:,.0f} examples/s" if found["fits"] else "does not fit")
            )
            if not found["fits"] or rate < 1.01 * before:
                break
            size, before = 2 * size, rate
    fitting = [found for found in tried if found["fits"]]
    best = max(fitting, key=lambda found: found["predicted_examples_per_second"]) if fitting else tried[0]
    shown = (
        "batch_size",
        "sharding",
        "remat",
        "fits",
        "bytes_per_chip",
        "predicted_step_seconds",
        "predicted_examples_per_second",
    )
    return best | {"search": [{name: found[name] for name in (*shown, "predicted_mfu")} for found in tried]}


def examine(config: PlanConfig, mesh: Mesh, chip: Chip | None, say: Say) -> dict[str, Any]:
    """Compile one run's step and say what it takes."""
    check_batch_size(config.batch_size, config.gradient_accumulation, mesh)
    run = bare_run(config, full_rows(config.examples, config.max_length), lambda line: None)
    stage, length = run.stages[0], run.data.buckets[-1]
    arguments = step_arguments(run, mesh)
    what = {
        "model": config.model,
        "topology": config.topology,
        "chips": mesh.size // (chip.devices_per_chip if chip else 1),
        **{name: getattr(config, name) for name in ("method", "precision", "batch_size", "gradient_accumulation")},
        **{name: getattr(config, name) for name in ("sharding", "remat")},
        "train_parameters": config.spec,
        "length": length,
    }
    start = time.perf_counter()
    available = chip.memory_bytes if chip else memory_of(mesh.devices.flat[0])
    parts = {name: bytes_of(tree) for name, tree in kept(arguments).items()}
    try:
        program = run.train_program(mesh).program(*arguments)
    except jax.errors.JaxRuntimeError as error:
        if (needed := out_of_memory(str(error))) is None:
            raise
        memory = parts | {"activations": None, "temporaries": None, "available": available}
        return what | {"fits": False, "bytes_per_chip": needed, "memory": memory} | dict.fromkeys(FIGURES)
    memory, total = split_memory(run, arguments, program, parts, mesh)
    needed = model_flops(stage.model, stage.labels, stage.objective, config.batch_size, length, prefix=stage.prefix)
    asked = program_flops(train_step, dataclasses.replace(arguments[0], frozen=arguments[1]), arguments[2])
    module = hlo.parse(program.as_text())
    prefix_seconds = 0.0
    if chip:
        rates = hlo.Rates(chip.clock, chip.link_bandwidth, chip.memory_bandwidth)
        times, peak = hlo.times(module, rates), chip.peak_flops
        step, compute = times.total, times.compute
        collectives = [dataclasses.asdict(transfer) for transfer in times.transfers]
        if stage.prefix:
            prefix_seconds = hlo.times(hlo.parse(prefix_program(run, mesh, arguments).as_text()), rates).total
    else:
        peak = matmul_flops(config.precision)
        step = compute = asked / (peak * mesh.size)
        collectives = [dataclasses.asdict(transfer) for transfer in hlo.transfers(module)]
    steps = config.epochs * math.ceil(config.examples / config.batch_size)
    once = math.ceil(config.examples / config.batch_size) * (config.epochs if config.prefix_cache == "off" else 1)
    hours = (steps * step + once * prefix_seconds) / 3600
    price = config.price_per_chip_hour
    figures = {
        "predicted_step_seconds": step,
        "predicted_compute_seconds": compute,
        "predicted_examples_per_second": config.batch_size / step,
        "predicted_tokens_per_second": config.batch_size * length / step,
        "predicted_mfu": needed / (step * peak * mesh.size),
        "predicted_mfu_compute": needed / (compute * peak * mesh.size),
        "collectives": collectives,
        "predicted_hours": hours,
        "predicted_cost": None if price is None else price * hours * what["chips"],
        "basis": COST_MODEL if chip else ROOFLINE,
        "mfu_formula": FORMULA,
        "model_flops": needed,
        "program_flops": asked,
        "peak_flops_per_chip": peak,
        "steps": steps,
        "predicted_prefix_seconds": prefix_seconds,
        "predicted_memory_seconds": times.memory if chip else None,
        "uncounted": times.uncounted if chip else {},
        "unknown_loops": hlo.unknown_loops(module),
        "compile_seconds": time.perf_counter() - start,
    }
    return what | {"fits": total <= available, "bytes_per_chip": total, "memory": memory | {"available": available}} | figures


FIGURES = (
    "predicted_step_seconds",
    "predicted_compute_seconds",
    "predicted_examples_per_second",
    "predicted_tokens_per_second",
    "predicted_mfu",
    "predicted_mfu_compute",
    "collectives",
    "predicted_hours",
    "predicted_cost",
)
"""What is not known of a program that does not fit."""


def kept(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The step's arguments by what they are."""
    state, frozen, batch = arguments
    return {"weights": (state.trainable, frozen), "optimizer": state.optimizer_state, "batch": batch}


def bytes_of(tree: Any) -> int:
    """Bytes that a tree of shapes with shardings takes on one device."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in arrays)


def split_memory(
    run: Run, arguments: tuple[Any, ...], program: Any, parts: dict[str, int], mesh: Mesh
) -> tuple[dict[str, int], int]:
    """(bytes on a device by what they are for, in all).

    weights, optimizer and batch are the arguments; activations what the forward pass leaves for the backward pass (of one
    microbatch, before the compiler decides what to keep); temporaries the rest of what the compiler sets aside while the
    step runs: gradients, casts, scratch.
    """
    found = program.memory_analysis()
    aliased = getattr(found, "alias_size_in_bytes", 0)
    outputs = max(0, found.output_size_in_bytes - aliased)
    held = sum(parts.values())
    total = max(held, found.argument_size_in_bytes) + found.temp_size_in_bytes + outputs
    activations = min(residual_bytes(run, arguments) // mesh.size, found.temp_size_in_bytes)
    return parts | {"activations": activations, "temporaries": total - held - activations}, total


def residual_bytes(run: Run, arguments: tuple[Any, ...]) -> int:
    """What the forward pass of one microbatch, over all devices, keeps for the backward pass besides the parameters."""
    state, frozen, batch = arguments
    microbatch = {
        name: jax.ShapeDtypeStruct((len_ // run.config.gradient_accumulation, *rest), leaf.dtype)
        for name, leaf in batch.items()
        for len_, *rest in [leaf.shape]
    }
    sizes: list[int] = []

    def forward(trainable: Any, frozen: Any, batch: Any) -> None:
        def loss(trainable: Any) -> jax.Array:
            losses, _ = measure(state.objective, {**frozen, **trainable}, batch, jax.random.key(0))
            return jax.numpy.asarray(sum(term.coefficient * average(losses[term.name]) for term in state.objective))

        _, backward = jax.vjp(loss, trainable)
        given = {id(value) for value in jax.tree.leaves((trainable, frozen, batch))}
        kept = {id(leaf): leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in given}
        sizes.extend(leaf.size * leaf.dtype.itemsize for leaf in kept.values() if hasattr(leaf, "aval"))

    jax.eval_shape(forward, state.trainable, frozen, microbatch)
    return sum(sizes)


def prefix_program(run: Run, mesh: Mesh, arguments: tuple[Any, ...]) -> Any:
    """The program that computes what the frozen layers make of a batch."""
    size, length = run.config.batch_size, run.data.buckets[-1]
    rows = NamedSharding(mesh, PartitionSpec(DATA))
    batch = jax.eval_shape(lambda: make_batch(full_rows(size, length), range(size), length, size, 0))
    batch = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows) for n, leaf in batch.items()}
    return Compiled(prefix_step(run.stages[0].model), mesh, donate=False).program(arguments[1], batch)


def memory_of(device: Any) -> int:
    """Bytes of a device of this machine; a CPU's is the machine's."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def out_of_memory(message: str) -> int | None:
    """Bytes that a program would take, from the compiler's refusal; None if it is about something else."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    return int(float(found[1]) * units[found[2]]) if found else 0


def show_plan(found: dict[str, Any]) -> None:
    """The plan for people, on stdout."""
    how = f"{found['sharding']}, remat" if found["remat"] else found["sharding"]
    parts = found["gradient_accumulation"]
    print(
        f"{found['model']} on {found['topology']} ({found['chips']} chips): {found['method']}, {found['train_parameters']}, {how},"
    )
    print(
        f"{found['precision']}, batch {found['batch_size']} x {found['length']} tokens"
        + (f" in {parts} microbatches" if parts > 1 else "")
    )
    memory = dict(found["memory"])
    room = memory.pop("available")
    total = found["bytes_per_chip"]
    print(f"\nmemory per device   {_gigabytes(total)} of {_gigabytes(room)}: {'fits' if found['fits'] else 'does NOT fit'}")
    for name, size in memory.items():
        print(f"  {name:17} {'–' if size is None else _gigabytes(size)}")
    if not found["fits"] and found["predicted_step_seconds"] is None:
        print("\nTry a smaller --batch-size, more --gradient-accumulation, --remat, or --search.")
        return
    step, compute = found["predicted_step_seconds"], found["predicted_compute_seconds"]
    basis = found["basis"]
    print(f"\nstep                {_milliseconds(step)} all in, {_milliseconds(compute)} compute alone ({basis})")
    rates = f"{found['predicted_examples_per_second']:,.0f} examples/s, {found['predicted_tokens_per_second']:,.0f} tokens/s"
    print(f"throughput          {rates} ({basis})")
    print(
        f"MFU                 {found['predicted_mfu']:.3f} all in, {found['predicted_mfu_compute']:.3f} compute alone ({basis})"
    )
    print(f"                    = {found['mfu_formula']}")
    for transfer in found["collectives"]:
        seconds = (
            ""
            if transfer["seconds"] is None
            else (
                f"{_milliseconds(transfer['seconds'])}, of which {_milliseconds(transfer['exposed'])} with nothing computed meanwhile"
            )
        )
        print(f"{transfer['kind']:19} x{transfer['times']}, {transfer['bytes'] / 1e6:,.1f} MB a device  {seconds}")
    for name, number in found["uncounted"].items():
        print(f"not counted         {name} x{number}: a kernel of which the compiler says nothing")
    cost = "" if found["predicted_cost"] is None else f", cost {found['predicted_cost']:,.2f}"
    print(
        f"run                 {found['steps']:,} steps, {found['predicted_hours']:.3f} hours without compilation{cost} ({basis})"
    )
    if "search" in found:
        print("\nThe fastest that fits of:")
        for row in found["search"]:
            rate = row["predicted_examples_per_second"]
            how = f"{row['sharding']}{', remat' if row['remat'] else ''}"
            speed = f"{rate:,.0f} examples/s, MFU {row['predicted_mfu']:.3f}" if rate else "does not fit"
            print(f"  --batch-size {row['batch_size']:<6} {how:18} {_gigabytes(row['bytes_per_chip'])}  {speed}")


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms"
