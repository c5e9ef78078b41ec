"""What a step costs, machine aside: compiled FLOPs, bytes, collectives and compilations against a committed table.

Nothing is timed, so that the figures hold anywhere; a change that makes the step dearer shows here. Where a change is
meant, write the table anew: PYTHONPATH=tests python tests/cost/test_costs.py
"""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from conftest import tiny_config

from ftjax import sharding
from ftjax.config import PlanConfig
from ftjax.cost import hlo
from ftjax.cost.bare import bare_run, full_rows, random_rows, step_arguments
from ftjax.cost.flops import program_flops
from ftjax.data.batches import batches
from ftjax.parallel import shard_batch
from ftjax.step import train_step

TABLE = Path(__file__).parent.parent / "golden" / "costs.json"
CASES = {
    "full": {},
    "full, 4 microbatches, replicated": {"gradient_accumulation": 4, "sharding": "replicated"},
    "partial, last layer": {"method": "partial", "train_parameters": "last:1,head", "precision": "bfloat16"},
    "self-supervised": {"method": "self-supervised", "gradient_accumulation": 2},
}


def shape(directory):
    """A directory with the numbers of a tiny BERT, and no weights."""
    directory.mkdir(exist_ok=True)
    config = dataclasses.asdict(tiny_config())
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    return directory


def cost(directory, changes):
    """Of the step over 8 devices: dot products asked for and compiled (FLOPs a device), bytes a device, communication."""
    config = PlanConfig(model=str(directory), topology="cpu", batch_size=32, max_length=16, **changes)
    run = bare_run(config, full_rows(32, 16), jax.devices(), None, lambda line: None)
    arguments = step_arguments(run)
    program = run.train_program().program(*arguments)
    module = hlo.parse(program.as_text())
    return {
        "asked_flops": program_flops(train_step, dataclasses.replace(arguments[0], frozen=arguments[1]), arguments[2]),
        "flops": hlo.flops(module),
        "argument_bytes": program.memory_analysis().argument_size_in_bytes,
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "collectives": {moved.kind: [moved.times, round(moved.bytes)] for moved in hlo.transfers(module)},
    }


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_what_the_table_says(case, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 64)  # so that the tiny model's matrices are cut as real ones are
    found, expected = cost(shape(tmp_path / "shape"), CASES[case]), json.loads(TABLE.read_text())[case]
    for name in ("asked_flops", "argument_bytes", "collectives"):
        assert found[name] == expected[name], f"{name}; is the change meant? See the top of this file"
    assert found["flops"] == pytest.approx(expected["flops"], rel=0.02)  # compilers differ a little
    assert found["temporary_bytes"] <= 1.25 * expected["temporary_bytes"]  # other machines need a little more


def test_two_epochs_compile_once_for_every_length(tmp_path):
    config = PlanConfig(model=str(shape(tmp_path / "shape")), topology="cpu", batch_size=8, max_length=16)
    run = bare_run(config, random_rows(40, 16, 64, 2), jax.devices(), None, lambda line: None)
    state, frozen, _ = step_arguments(run)
    program = run.train_program()
    for epoch in range(2):
        for batch in batches(run.data.train, (8, 16), 8, pad_token_id=0, seed=0, epoch=epoch):
            program.program(state, frozen, shard_batch(batch, run.layout.mesh))
    assert len(program.programs) == json.loads(TABLE.read_text())["compilations of two lengths"]


def write():
    """The table, anew."""
    import tempfile

    sharding.SMALLEST = 64
    directory = shape(Path(tempfile.mkdtemp()))
    table = {"compilations of two lengths": 2} | {case: cost(directory, changes) for case, changes in CASES.items()}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    write()
