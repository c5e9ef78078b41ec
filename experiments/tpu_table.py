"""The table of README: one model's step on TPUs that need not be there, a line a topology, in Markdown.

    python experiments/tpu_table.py                       # needs libtpu: pip install 'ftjax[tpu]'; minutes a line

Full fine-tuning in bfloat16 (gradients are summed in it too) with the model's own dropout, rows of 128 tokens, 32 a chip;
then four microbatches of as many, compiled one by one.
All figures are predicted by the XLA:TPU cost model from the compiled step, "all in": with communication and what else the
cost model leaves out, see ftjax/cost/hlo.py. None was measured on a chip.
"""

import argparse
import sys

from ftjax.config import PlanConfig
from ftjax.cost.topology import settle_environment
from ftjax.errors import InputError

TOPOLOGIES = ("v3:2x2", "v4:2x2x1", "v5e:1x1", "v5e:2x4", "v5e:4x8", "v5p:2x2x1", "v6e:2x4")
ROWS = 32  # a device and microbatch
HEAD = ("topology", "batch", "memory a chip", "step", "compute alone", "examples/s", "tokens/s", "MFU", "MFU of compute")


def cells(found: dict) -> list[str]:
    """A plan as a line of the table."""
    parts = found["gradient_accumulation"]
    batch = f"{found['batch_size']:,}" + (f" ({parts} microbatches)" if parts > 1 else "")
    room = f"{found['bytes_per_chip'] / 1e9:.1f} of {found['memory']['available'] / 1e9:.1f} GB"
    if found["predicted_step_seconds"] is None:
        return [found["topology"], batch, f"{room}: does not fit", *["–"] * 6]
    step, compute = (1000 * found[name] for name in ("predicted_step_seconds", "predicted_compute_seconds"))
    rates = [f"{found[f'predicted_{name}_per_second']:,.0f}" for name in ("examples", "tokens")]
    mfu = [f"{found[name]:.2f}" for name in ("predicted_mfu", "predicted_mfu_compute")]
    return [found["topology"], batch, room, f"{step:.1f} ms", f"{compute:.1f} ms", *rates, *mfu]


def main() -> None:
    """Print the table, line by line as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base", help="a shape, directory or hub id")
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    options = parser.parse_args()
    settle_environment(options.topology[0])
    from ftjax.cost.plan import COST_MODEL, examine
    from ftjax.cost.topology import devices_of

    print(f"{options.model}, {COST_MODEL}:\n")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for topology in options.topology:
        devices, chip = devices_of(topology)
        for parts in (1, 4):
            config = PlanConfig(
                model=options.model,
                topology=topology,
                precision="bfloat16",
                reduce_dtype="bfloat16",
                batch_size=ROWS * parts * len(devices),
                gradient_accumulation=parts,
                unroll_accumulation=parts > 1,
            )
            print(f"| {' | '.join(cells(examine(config, devices, chip, print)))} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"tpu_table: {error}", file=sys.stderr)
        raise SystemExit(2) from None
