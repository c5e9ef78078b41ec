"""Programs that run without our code: StableHLO in a Python that knows only jax and numpy, a SavedModel where TensorFlow is."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import families
import jax
import numpy as np
import pytest
from conftest import command_environment
from decoders import FAMILIES, decoder_inputs, decoder_logits, write_decoder
from test_adapters import command

from ftjax.models.layers import ACTIVATIONS, gelu
from ftjax.objectives.classification import class_logits
from ftjax.pretrained import load_pretrained
from ftjax.pretrained.program import plain_gelu, save_stablehlo, spelled_out_gelu

DOCS = Path(__file__).resolve().parent.parent / "docs" / "export.md"
LOGITS = jax.jit(class_logits, static_argnums=0)


def snippet(kind):
    """The program of docs/export.md that imports this."""
    programs = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return next(program for program in programs if f"import {kind}" in program or f", {kind} as" in program)


def served(program, directory, batches):
    """Logits that a program of docs/export.md gives for each batch, in a process of its own that knows none of our code."""
    np.savez(directory / "batches.npz", **{f"{i}/{n}": v for i, batch in enumerate(batches) for n, v in batch.items()})
    head, call = program.rstrip().rsplit("\n", 1)
    lines = [
        head,
        "import sys",
        "import numpy as np",
        "given = np.load('batches.npz')",
        f"for number in range({len(batches)}):",
        "    inputs = {name: given[f'{number}/{name}'] for name in inputs}",
        f"    {call.replace('**inputs', '**{n: tf.constant(v) for n, v in inputs.items()}')}",
        "    np.save(f'{number}.npy', logits)",
        "assert not any(name.split('.')[0] in ('ftjax', 'flax', 'transformers') for name in sys.modules)",
    ]
    environment = {name: value for name, value in command_environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=directory, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return [np.load(directory / f"{number}.npy") for number in range(len(batches))]


def encoder_batches(pad):
    return [families.inputs(pad, rows=rows, length=length, seed=rows) for rows, length in ((5, 17), (3, 12))]


def test_a_classifiers_program_runs_on_jax_alone(tmp_path, capsys):
    families.write_golden(tmp_path / "model", f"bert {families.HEADS[0]}")
    arguments = ("export", "--model", tmp_path / "model", "--output", tmp_path / "served", "--export-format", "stablehlo")
    status, _, err = command(capsys, *arguments)
    assert status == 0, err
    said = json.loads((tmp_path / "served" / "signature.json").read_text())
    assert list(said["inputs"]) == ["input_ids", "attention_mask", "token_type_ids"]
    assert (said["labels"], said["max_length"]) == (list(families.LABELS), 48)
    loaded, batches = load_pretrained(tmp_path / "model"), encoder_batches(0)
    found = served(snippet("jax"), tmp_path, batches)
    for logits, batch in zip(found, batches, strict=True):
        expected = np.asarray(LOGITS(loaded.model, loaded.params, batch, None))
        assert np.abs(logits - expected).max() <= 1e-5
    assert command(capsys, *arguments)[0] == 2  # not empty


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mpnet", "roberta ForMaskedLM"])
def test_programs_of_other_families_take_rows_of_any_number_and_length(name, tmp_path):
    if decoder := name in FAMILIES:
        write_decoder(tmp_path / "model", FAMILIES[name])
        batches = [decoder_inputs(), {n: v[:2, :11] for n, v in decoder_inputs(seed=1).items()}]
    else:
        kind = name if "MaskedLM" in name else f"{name} {families.HEADS[0]}"
        families.write_golden(tmp_path / "model", kind)
        batches = [{n: v for n, v in b.items() if n != "token_type_ids"} for b in encoder_batches(1)]
    loaded = load_pretrained(tmp_path / "model", causal_lm=decoder, masked_lm="MaskedLM" in name)
    save_stablehlo(loaded, tmp_path / "served")
    program = jax.export.deserialize(bytearray((tmp_path / "served" / "program.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    params = dict(np.load(tmp_path / "served" / "params.npz"))
    for batch in batches:
        types = {"token_type_ids": np.zeros_like(batch["input_ids"])}
        if loaded.labels:
            expected = np.asarray(LOGITS(loaded.model, loaded.params, batch | types, None))
        else:
            expected = decoder_logits(loaded.model, loaded.params, batch | types)
        assert np.abs(np.asarray(program.call(params, batch)) - expected).max() <= 1e-5
    longest = loaded.model.config.max_length
    with pytest.raises(ValueError):
        program.call(params, {n: np.ones((1, longest + 1), np.int32) for n in batches[0]})


def test_a_model_without_a_head_has_no_program(tiny_bert, tmp_path, capsys):
    arguments = ("export", "--model", tiny_bert, "--output", tmp_path / "served", "--export-format", "stablehlo")
    status, _, err = command(capsys, *arguments)
    assert status == 2 and "neither a classifier nor a language model's head" in err
    assert not (tmp_path / "served").exists()
    assert command(capsys, "export", "--output", tmp_path / "served")[2].endswith("Give either --checkpoint or --model.\n")


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_without_tensorflow_a_savedmodel_is_refused_with_the_mend(tmp_path, capsys):
    families.write_golden(tmp_path / "model", f"bert {families.HEADS[0]}")
    arguments = ("export", "--model", tmp_path / "model", "--output", tmp_path / "served", "--export-format", "savedmodel")
    status, _, err = command(capsys, *arguments)
    assert status == 2 and "pip install 'ftjax[tf]'" in err
    assert not (tmp_path / "served").exists()


def test_the_gelu_of_savedmodels_is_gelu():
    x = np.linspace(-9, 9, 20001, dtype=np.float32)
    assert np.all(np.abs(np.asarray(plain_gelu(x)) - np.asarray(gelu(x))) <= 3e-7 * np.abs(x))
    with spelled_out_gelu():
        assert ACTIVATIONS["gelu"] is plain_gelu
    assert ACTIVATIONS["gelu"] is gelu


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_savedmodel_gives_equal_logits(name, tmp_path):
    from ftjax.pretrained.program import save_savedmodel

    if name == "bert":
        families.write_golden(tmp_path / "model", f"bert {families.HEADS[0]}")
        loaded, batches = load_pretrained(tmp_path / "model"), encoder_batches(0)
        expected = [np.asarray(LOGITS(loaded.model, loaded.params, batch, None)) for batch in batches]
    else:
        write_decoder(tmp_path / "model", FAMILIES[name])
        loaded = load_pretrained(tmp_path / "model", causal_lm=True)
        batches = [decoder_inputs(), {n: v[:2, :11] for n, v in decoder_inputs(seed=1).items()}]
        expected = [decoder_logits(loaded.model, loaded.params, batch) for batch in batches]
    save_savedmodel(loaded, tmp_path / "served-tf")
    for logits, wanted in zip(served(snippet("tensorflow"), tmp_path, batches), expected, strict=True):
        assert np.abs(logits - wanted).max() <= 1e-5
