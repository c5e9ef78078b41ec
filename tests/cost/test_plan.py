"""`ftjax plan`: the step of training, compiled for this machine and for TPUs that are not there."""

import functools
import importlib.util
import json
import math

import jax
import pytest
from conftest import fail, run_command

from ftjax.config import PlanConfig
from ftjax.cost.bare import bare_run, full_rows, step_arguments
from ftjax.cost.chips import CHIPS, read_topology
from ftjax.cost.plan import COST_MODEL, bytes_of, kept, out_of_memory, plan, search, show_plan
from ftjax.errors import InputError

TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the compiler for TPUs")
NEEDED = {"fits", "bytes_per_chip", "predicted_step_seconds", "predicted_mfu", "collectives"}
SMALL = {"topology": "cpu", "batch_size": 16, "max_length": 16}


@functools.cache
def planned(model, **changes):
    return plan(PlanConfig(model=str(model), **{**SMALL, **changes}), lambda line: None)


@pytest.fixture(scope="module")
def found(tiny_bert):
    """The plan of a full run on 8 fake devices."""
    return planned(tiny_bert, examples=1000, epochs=3, price_per_chip_hour=2.0, batch_size=256, max_length=64)


def test_the_plan_of_a_run_on_this_machine(found):
    assert set(found) >= NEEDED
    assert found["fits"] is True
    assert found["chips"] == found["chips_paid_for"] == 8
    assert found["bytes_per_chip"] == sum(found["memory"][n] for n in found["memory"] if n != "available")
    assert found["memory"]["activations"] > 0 and found["memory"]["temporaries"] > 0
    assert found["steps"] == 3 * math.ceil(1000 / 256)
    assert found["predicted_hours"] == pytest.approx(found["steps"] * found["predicted_step_seconds"] / 3600)
    assert found["predicted_cost"] == pytest.approx(2.0 * 8 * found["predicted_hours"])
    assert found["predicted_examples_per_second"] == pytest.approx(256 / found["predicted_step_seconds"])
    assert found["predicted_tokens_per_second"] == pytest.approx(256 * 64 / found["predicted_step_seconds"])
    assert "lower bound" in found["basis"]
    json.dumps(found)


def test_collectives_move_the_gradients_of_a_replicated_run_once(tiny_bert):
    found = planned(tiny_bert, sharding="replicated")
    summed = [transfer for transfer in found["collectives"] if transfer["kind"] == "all-reduce"]
    trained = found["memory"]["weights"]  # float32, as the gradients
    assert sum(transfer["bytes"] for transfer in summed) == pytest.approx(2 * 7 / 8 * trained, rel=0.01)


def test_weights_and_optimizer_shrink_with_the_devices_under_zero1_and_with_what_trains(tiny_bert):
    def parts(**changes):
        config = PlanConfig(model=str(tiny_bert), **{**SMALL, **changes})
        run = bare_run(config, full_rows(16, 16), jax.devices(), None, lambda line: None)
        return {name: bytes_of(tree) for name, tree in kept(step_arguments(run)).items()}

    whole, cut, head = parts(sharding="replicated"), parts(), parts(method="partial", train_parameters="head")
    assert whole["optimizer"] == pytest.approx(2 * whole["weights"], rel=1e-3)
    table = 4 * 30522 * 16
    assert whole["weights"] - cut["weights"] == pytest.approx(7 / 8 * table)  # all else is small and stays whole
    assert head["optimizer"] < 0.01 * whole["optimizer"]


@pytest.mark.long
def test_microbatches_and_remat_save_memory(tiny_bert):
    def temporary(**changes):
        memory = planned(tiny_bert, batch_size=1024, max_length=64, **changes)["memory"]
        assert memory["activations"] > 0
        return memory["activations"] + memory["temporaries"]

    plain = temporary()
    assert temporary(gradient_accumulation=4) < plain
    assert temporary(sharding="replicated", remat="full") < temporary(sharding="replicated")
    kept = [planned(tiny_bert, batch_size=1024, max_length=64, remat=r)["memory"]["activations"] for r in ("none", "full")]
    assert kept[1] < 0.2 * kept[0]


def test_frozen_layers_are_planned_as_they_run(tiny_bert):
    cached = planned(tiny_bert, method="partial", train_parameters="last:1,head")
    full = planned(tiny_bert)
    assert cached["model_flops"] < 0.6 * full["model_flops"]
    assert cached["program_flops"] < 0.6 * full["program_flops"]


def test_the_search_doubles_the_batch_until_it_no_longer_fits_or_pays(monkeypatch, capsys):
    """The rule alone, on made-up figures: memory grows with the batch, less with remat, which costs time."""

    def examine(config, devices, chip, say):
        size = config.batch_size
        needed = size * (1 if config.remat == "full" else 4) + (0 if config.sharding == "zero1" else 100)
        fits, rate = needed <= 600, min(size, 200) * (0.9 if config.remat == "full" else 1.0)
        figures = {"predicted_examples_per_second": rate, "predicted_step_seconds": size / rate, "predicted_mfu": rate / 1000}
        found = {name: getattr(config, name) for name in ("batch_size", "sharding", "remat")} | {"mesh": {"data": 8}}
        return found | {"fits": fits, "bytes_per_chip": needed} | (figures if fits else dict.fromkeys(figures))

    lines = []
    monkeypatch.setattr("ftjax.cost.plan.examine", examine)
    best = search(PlanConfig(model="x", batch_size=32), jax.devices(), None, lines.append)
    tried = [(row["sharding"], row["remat"], row["batch_size"], row["fits"]) for row in best["search"]]
    assert tried == [
        *(("zero1", "none", size, fits) for size, fits in ((32, True), (64, True), (128, True), (256, False))),
        *(("replicated", "none", size, fits) for size, fits in ((32, True), (64, True), (128, False))),
        *(("zero1", "full", size, fits) for size, fits in ((32, True), (64, True), (128, True), (256, True), (512, True))),
        *(
            ("replicated", "full", size, fits)
            for size, fits in ((32, True), (64, True), (128, True), (256, True), (512, False))
        ),
    ]
    assert (best["sharding"], best["remat"], best["batch_size"]) == ("zero1", "full", 256)
    assert len(lines) == 1 + len(tried) and "Compiling" in lines[0]
    assert sum("does not fit" in line for line in lines) == 3


def test_the_text_says_what_it_rests_on(found, capsys):
    show_plan(found)
    assert "MFU" not in capsys.readouterr().out  # of a lower bound
    show_plan({**found, "basis": COST_MODEL})
    lines = capsys.readouterr().out.splitlines()
    (heading,) = [number for number, text in enumerate(lines) if text == "Predicted by the XLA:TPU cost model:"]
    for name in ("step", "throughput", "MFU", "run", "cost"):
        (number,) = [number for number, text in enumerate(lines) if text.startswith(name)]
        assert number > heading and "" not in lines[heading:]  # nothing stands between a figure and what it rests on
    assert lines[-1].startswith("cost") and "8 chips x" in lines[-1] and lines[-1].endswith("hours x 2")
    assert any("model FLOPs" in text for text in lines)


def test_a_search_in_which_nothing_fits_says_so(found, capsys):
    without = {**found, "fits": False, "predicted_step_seconds": None, "predicted_examples_per_second": None}
    show_plan({**without, "search": [without]})
    text = capsys.readouterr().out
    assert "does NOT fit" in text and "Try a smaller --batch-size" in text and "does not fit" in text


def test_a_refusal_for_lack_of_memory_is_understood():
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    )
    assert out_of_memory(said) == int(20.5 * 2**30)
    assert out_of_memory("INVALID_ARGUMENT: something else") is None


def test_topologies_and_their_mistakes():
    assert read_topology("v5e:2x4") == (CHIPS["v5e"], (2, 4))
    assert read_topology("v5p:2x2x1") == (CHIPS["v5p"], (2, 2, 1))
    for text, said in (
        ("v5f:2x4", "v5e"),
        ("v5e", "v5e:2x4"),
        ("v5e:2x", "v5e:2x4"),
        ("v5e:0x4", "v5e:2x4"),
        ("v5p:2x4", "3 dimensions"),
    ):
        with pytest.raises(InputError, match=said):
            read_topology(text)


def test_mistakes(capsys, tiny_bert):
    base = ("plan", "--model")
    assert "minilm-l6, bert-base, bert-large" in fail(capsys, *base, "./bert-bass", "--topology", "cpu")
    assert "must be at least 1" in fail(capsys, *base, tiny_bert, "--topology", "cpu", "--examples", "0")
    assert "positions" in fail(capsys, *base, tiny_bert, "--topology", "cpu", "--max-length", "128")
    assert "take a multiple" in fail(capsys, *base, tiny_bert, "--topology", "cpu", "--batch-size", "13", "--max-length", "16")
    assert "unknown chip" in fail(capsys, *base, tiny_bert, "--topology", "v9:2x4")
    assert "matches no parameter" in fail(
        *(capsys, *base, tiny_bert, "--topology", "cpu", "--max-length", "16"),
        *("--method", "partial", "--train-parameters", "regex:x"),
    )
    if jax.default_backend() == "cpu":
        assert "ftjax doctor" in fail(capsys, *base, tiny_bert, "--topology", "gpu")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_the_line_says_what_to_install(capsys):
    assert "pip install 'ftjax[tpu]'" in fail(capsys, "plan", "--model", "minilm-l6", "--topology", "v5e:2x4")


def test_the_command_prints_one_object(tiny_bert):
    done = run_command("plan", "--model", tiny_bert, "--topology", "cpu", "--batch-size", "4", "--max-length", "16", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) >= NEEDED
