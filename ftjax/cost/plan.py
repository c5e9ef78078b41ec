"""Does a run fit, how fast is it, what does it cost: read off the very step that training compiles, without the chips."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ftjax.config import PlanConfig
from ftjax.cost import hlo, kernels
from ftjax.cost.bare import bare_run, full_rows, step_arguments
from ftjax.cost.benchmark import matmul_flops
from ftjax.cost.chips import Chip
from ftjax.cost.flops import FORMULA, model_flops, program_flops
from ftjax.cost.topology import devices_of
from ftjax.data.batches import make_batch
from ftjax.parallel import Compiled
from ftjax.partition import labels_of
from ftjax.prefix import prefix_step
from ftjax.prepare import Run
from ftjax.report.formats import duration
from ftjax.sharding import ROWS
from ftjax.step import train_step

Say = Callable[[str], None]

COST_MODEL = "predicted by the XLA:TPU cost model"
ROOFLINE = (
    "a lower bound: dot products at the rate that large ones reach on this machine; see ftjax benchmark for the real time"
)


def plan(config: PlanConfig, say: Say) -> dict[str, Any]:
    """What --json prints. Raises InputError for a user's mistake, before anything is compiled where that can be told."""
    config.check()
    devices, chip = devices_of(config.topology)
    if config.search:
        return search(config, devices, chip, say)
    return examine(config, devices, chip, say)


def search(config: PlanConfig, devices: Sequence[jax.Device], chip: Chip | None, say: Say) -> dict[str, Any]:
    """The plan that trains the most examples a second among those that fit, with all that were tried under "search".

    For every sharding, with and without remat, the batch doubles from --batch-size on until it no longer fits or brings
    less than 1 %.
    """
    tried: list[dict[str, Any]] = []
    shardings: tuple[Literal["zero1", "replicated"], ...] = ("zero1", "replicated") if len(devices) > 1 else ("replicated",)
    if config.reduce_dtype != "float32":
        shardings = ("zero1",)  # the one that keeps parts
    remats: tuple[Literal["none", "full"], ...] = ("none", "full")
    for remat, sharding in [(remat, sharding) for remat in remats for sharding in shardings]:
        size, before = config.batch_size, 0.0
        while True:
            if not tried:
                say(
                    f"Compiling a step for {config.topology} for each choice; that takes half a minute to some minutes each ..."
                )
            one = dataclasses.replace(config, batch_size=size, remat=remat, sharding=sharding)
            found = examine(one, devices, chip, lambda line: None)
            tried.append(found)
            rate = found["predicted_examples_per_second"] or 0.0
            say(f"batch {size}, {how(found)}: " + (f"{rate:,.0f} examples/s" if found["fits"] else "does not fit"))
            if not found["fits"] or rate < 1.01 * before:
                break
            size, before = 2 * size, rate
    fitting = [found for found in tried if found["fits"]]
    best = max(fitting, key=lambda found: found["predicted_examples_per_second"]) if fitting else tried[0]
    shown = (
        "batch_size",
        "mesh",
        "sharding",
        "remat",
        "fits",
        "bytes_per_chip",
        "predicted_step_seconds",
        "predicted_examples_per_second",
    )
    return best | {"search": [{name: found[name] for name in (*shown, "predicted_mfu")} for found in tried]}


def examine(config: PlanConfig, devices: Sequence[jax.Device], chip: Chip | None, say: Say) -> dict[str, Any]:
    """Compile one run's step and say what it takes."""
    memory_bytes = chip.memory_bytes if chip else None
    run = bare_run(config, full_rows(config.examples, config.max_length), devices, memory_bytes, lambda line: None)
    mesh = run.layout.mesh
    stage, length = run.stages[0], run.data.buckets[-1]
    arguments = step_arguments(run)
    what = {
        "model": config.model,
        "topology": config.topology,
        "chips": mesh.size // (chip.devices_per_chip if chip else 1),
        "chips_paid_for": len(devices) // (chip.devices_per_chip if chip else 1),
        **{name: getattr(config, name) for name in ("method", "precision", "batch_size", "gradient_accumulation")},
        "unroll_accumulation": config.unroll_accumulation,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        **{name: getattr(config, name) for name in ("sharding", "remat")},
        "train_parameters": config.spec,
        "length": length,
        "basis": COST_MODEL if chip else ROOFLINE,
        **{name: getattr(config, name) for name in ("examples", "epochs", "price_per_chip_hour")},
    }
    say(f"Compiling the step for {config.topology}; that takes from half a minute to some minutes ...")
    start = time.perf_counter()
    each = chip.devices_per_chip if chip else 1
    available = each * (chip.memory_bytes if chip else memory_of(devices[0]))
    parts = {name: bytes_of(tree) for name, tree in kept(arguments).items()}
    try:
        program = run.train_program().program(*arguments)
    except jax.errors.JaxRuntimeError as error:
        if (needed := out_of_memory(str(error))) is None:
            raise
        parts = {name: each * size for name, size in parts.items()}
        memory = parts | {"activations": None, "temporaries": None, "available": available}
        return what | {"fits": False, "bytes_per_chip": each * needed, "memory": memory} | dict.fromkeys(FIGURES)
    module = hlo.parse(program.as_text())
    memory = {name: each * size for name, size in split_memory(program, module, parts).items()}
    total = sum(memory.values())
    needed = model_flops(
        stage.model, labels_of(stage.treatments), stage.objective, config.batch_size, length, prefix=stage.prefix
    )
    asked = program_flops(train_step, dataclasses.replace(arguments[0], frozen=arguments[1]), arguments[2])
    prefix_seconds = 0.0
    if chip:
        rates = hlo.Rates(chip.clock, chip.link_bandwidth, chip.memory_bandwidth)
        times, peak = hlo.times(module, rates, kernels.take(hlo.kernels(module))), chip.peak_flops
        step, compute = times.total, times.compute
        collectives = [dataclasses.asdict(transfer) for transfer in times.transfers]
        if stage.prefix:
            prefix = hlo.parse(prefix_program(run, arguments).as_text())
            prefix_seconds = hlo.times(prefix, rates, kernels.take(hlo.kernels(prefix))).total
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
        "predicted_cost": None if price is None else price * hours * what["chips_paid_for"],
        "mfu_formula": FORMULA,
        "model_flops": needed,
        "program_flops": asked,
        "peak_flops_per_chip": peak,
        "steps": steps,
        "predicted_prefix_seconds": prefix_seconds,
        "predicted_memory_seconds": times.memory if chip else None,
        "predicted_kernel_seconds": times.kernels if chip else None,
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


def split_memory(program: Any, module: hlo.Module, parts: dict[str, int]) -> dict[str, int]:
    """Bytes on a device by what they are for.

    weights, optimizer and batch are the arguments; activations what the forward pass leaves for the backward pass;
    temporaries the rest of what the compiler sets aside while the step runs: gradients, casts, scratch.
    """
    found = program.memory_analysis()
    outputs = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    held = sum(parts.values())
    total = max(held, found.argument_size_in_bytes) + found.temp_size_in_bytes + outputs
    activations = int(hlo.held_for_backward(module) * found.temp_size_in_bytes)
    return parts | {"activations": activations, "temporaries": total - held - activations}


def prefix_program(run: Run, arguments: tuple[Any, ...]) -> Any:
    """The program that computes what the frozen layers make of a batch."""
    size, length, mesh = run.config.batch_size, run.data.buckets[-1], run.layout.mesh
    rows = NamedSharding(mesh, PartitionSpec(ROWS))
    batch = jax.eval_shape(lambda: make_batch(full_rows(size, length), np.arange(size), length, size, 0))
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
    parts, memory = found["gradient_accumulation"], dict(found["memory"])
    batch = f"batch {found['batch_size']} x {found['length']} tokens" + (f" in {parts} microbatches" if parts > 1 else "")
    trains = f"{found['method']}, trains {found['train_parameters']}"
    print(f"{found['model']} on {found['topology']} ({found['chips']} chips): {trains}")
    print(f"{found['precision']}, {batch}, {how(found)}\n")
    fits = "fits" if found["fits"] else "does NOT fit"
    line("memory a chip", f"{_gigabytes(found['bytes_per_chip'])} of {_gigabytes(memory.pop('available'))}: {fits}")
    for name, size in memory.items():
        line(f"  {name}", "–" if size is None else _gigabytes(size))
    if found["predicted_step_seconds"] is None:
        print("\nTry a smaller --batch-size, more --gradient-accumulation, --remat full, --mesh with fsdp, or --search.")
    else:
        show_figures(found)
    if "search" in found:
        print("\nThe fastest that fits of:")
        width = max(len(how(row)) for row in found["search"])
        for row in found["search"]:
            rate = row["predicted_examples_per_second"]
            mfu = f", MFU {row['predicted_mfu']:.3f}" if found["basis"] == COST_MODEL else ""
            speed = f"{rate:,.0f} examples/s{mfu}" if rate else "does not fit"
            print(f"  --batch-size {row['batch_size']:<6} {how(row):{width}} {_gigabytes(row['bytes_per_chip']):>9}  {speed}")
        print(f"({found['basis']})")


def show_figures(found: dict[str, Any]) -> None:
    """What is predicted, under a heading that says what it rests on."""
    print(f"\n{found['basis'][:1].upper()}{found['basis'][1:]}:")
    step, compute = (_milliseconds(found[f"predicted_{name}seconds"]) for name in ("step_", "compute_"))
    line("step", f"{step} all in, {compute} compute alone")
    examples, tokens = (found[f"predicted_{name}_per_second"] for name in ("examples", "tokens"))
    line("throughput", f"{examples:,.{0 if examples >= 100 else 2}f} examples/s, {tokens:,.0f} tokens/s")
    if found["basis"] == COST_MODEL:  # a lower bound of the seconds says nothing of how well they are used
        line("MFU", f"{found['predicted_mfu']:.3f} all in, {found['predicted_mfu_compute']:.3f} compute alone")
        formula = f"= {found['mfu_formula']}; peak {found['peak_flops_per_chip'] / 1e12:,.1f} TFLOP/s a device"
        for part in textwrap.wrap(formula, 96):
            line("", part)
    for transfer in found["collectives"]:
        text = f"x{transfer['times']}, {transfer['bytes'] / 1e6:,.1f} MB a device"
        if transfer["seconds"] is not None:
            busy, exposed = _milliseconds(transfer["seconds"]), _milliseconds(transfer["exposed"])
            text += f", {busy}, of which nothing is computed for {exposed}"
        line(transfer["kind"] + ("" if transfer["blocking"] else " (async)"), text)
    if found["predicted_kernel_seconds"]:
        line("kernels", f"{_milliseconds(found['predicted_kernel_seconds'])} of it, their instructions, every branch taken")
    for name, number in found["uncounted"].items():
        line("not counted", f"{name} x{number}: a kernel of which the compiler says nothing")
    run = f"{found['steps']:,} steps ({found['epochs']} epochs of {found['examples']:,} examples)"
    line("run", f"{run}, {duration(3600 * found['predicted_hours'])} without compilation")
    if found["predicted_cost"] is not None:
        rate = f"{found['chips_paid_for']} chips x {found['predicted_hours']:.3g} hours x {found['price_per_chip_hour']:g}"
        line("cost", f"{found['predicted_cost']:,.2f} = {rate}")


def line(name: str, text: str) -> None:
    """One figure."""
    print(f"{name:24}{text}")


def how(found: dict[str, Any]) -> str:
    """The choices that --search makes, but for the batch."""
    mesh = ",".join(f"{axis}={size}" for axis, size in found["mesh"].items()) or "one device"
    return ", ".join([mesh, found["sharding"], *([f"remat {found['remat']}"] if found["remat"] != "none" else [])])


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms"
