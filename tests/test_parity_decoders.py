"""Decoders against PyTorch itself: logits, losses and gradients, classifiers both ways, greedy generation."""

import json

import jax
import numpy as np
import pytest
from decoders import FAMILIES, decoder_inputs, decoder_logits, positions, write_decoder
from safetensors.numpy import load_file
from test_pretrained import same_bytes

from ftjax.generate import Sampling, generate
from ftjax.objectives.causal_lm import CausalLM
from ftjax.pretrained import load_pretrained, save_pretrained

pytestmark = pytest.mark.parity


def torch_model(directory, kind="AutoModelForCausalLM"):
    import transformers

    model, notes = getattr(transformers, kind).from_pretrained(
        directory, attn_implementation="eager", dtype="float32", output_loading_info=True
    )
    assert not any(notes.values()), notes
    return model.eval()


def torch_inputs(batch):
    import torch

    found = {name: torch.tensor(value).long() for name, value in batch.items()}
    return found | {"position_ids": torch.tensor(positions(batch["attention_mask"])).long()}


def torch_decoder_logits(model, batch):
    import torch

    with torch.no_grad():
        return model(**torch_inputs(batch)).logits.numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_on_rows_padded_on_either_side(name, tmp_path):
    write_decoder(tmp_path, FAMILIES[name])
    batch = decoder_inputs()
    expected = torch_decoder_logits(torch_model(tmp_path), batch)
    loaded = load_pretrained(tmp_path, causal_lm=True)
    found = decoder_logits(loaded.model, loaded.params, batch)
    assert np.abs((found - expected) * (batch["attention_mask"][..., None] > 0)).max() <= 1e-4
    assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_writes_is_read_and_written_back_bit_for_bit(name, tmp_path):
    write_decoder(tmp_path / "ours", FAMILIES[name])
    torch_model(tmp_path / "ours").save_pretrained(tmp_path / "theirs")  # config.json has all that its class knows
    loaded = load_pretrained(tmp_path / "theirs", causal_lm=True)
    assert (loaded.new, loaded.carried) == ((), ())
    ours = load_pretrained(tmp_path / "ours", causal_lm=True).model
    assert (loaded.model.graph, loaded.model.shapes) == (ours.graph, ours.shapes)  # the graph holds every number that counts
    save_pretrained(loaded, loaded.params, tmp_path / "again", trained=False)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    same_bytes(tensors, load_file(tmp_path / "again" / "model.safetensors"))


@pytest.mark.parametrize("name", ["gpt2", "llama 3", "gemma2"])
def test_the_next_token_loss_and_its_gradients(name, tmp_path):
    import torch

    write_decoder(tmp_path, FAMILIES[name])
    batch = decoder_inputs()
    theirs = torch_model(tmp_path)
    labels = torch.tensor(np.where(batch["attention_mask"] > 0, batch["input_ids"], -100)).long()
    labels[1, 4] = -100  # they would predict the first token of a row from its padding
    expected = theirs(**torch_inputs(batch), labels=labels).loss
    expected.backward()
    loaded = load_pretrained(tmp_path, causal_lm=True)

    def loss(params):
        (total, weight), _ = CausalLM(loaded.model, block=7)(params, batch, None)
        return total / weight

    value, gradients = jax.jit(jax.value_and_grad(loss))(loaded.params)
    assert abs(float(value) - expected.item()) <= 1e-5 * abs(expected.item())
    table, reference = loaded.model.config.table, dict(theirs.named_parameters())
    found = {}
    for ours, gradient in gradients.items():
        their_name, transposed = table.theirs(ours)
        found[their_name] = np.asarray(gradient).T if transposed else np.asarray(gradient)
    for name, gradient in table.join(found).items():
        other = reference[name].grad.numpy()
        assert np.abs(gradient - other).max() <= 1e-4 * max(np.abs(other).max(), 1e-2), name


@pytest.mark.parametrize("name", ["gpt2", "llama, linear", "gemma3"])
def test_a_classifier_trained_elsewhere_loads_here_and_the_reverse(name, tmp_path):
    raw = FAMILIES[name] | {"pad_token_id": 0}
    write_decoder(tmp_path / "theirs", raw, labels=("a", "b", "c"), causal_lm=False)
    batch = decoder_inputs()
    batch["input_ids"] = batch["input_ids"] * batch["attention_mask"]  # they find the last token by the padding's id
    loaded = load_pretrained(tmp_path / "theirs")
    assert loaded.labels == ("a", "b", "c")
    assert loaded.new == ()

    def logits(params):
        module = loaded.model.bind(params)
        return np.asarray(module.classify(module.hidden_states(batch, readout=True)[-1]))

    expected = torch_decoder_logits(torch_model(tmp_path / "theirs", "AutoModelForSequenceClassification"), batch)
    assert np.abs(logits(loaded.params) - expected).max() <= 1e-4
    changed = {name: value * 1.01 for name, value in loaded.params.items()}
    save_pretrained(loaded, changed, tmp_path / "ours")
    back = torch_model(tmp_path / "ours", "AutoModelForSequenceClassification")
    assert back.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert np.abs(logits(changed) - torch_decoder_logits(back, batch)).max() <= 1e-4


@pytest.mark.parametrize("name", ["gpt2", "gpt2, its own head", "qwen3"])
def test_a_language_model_exports_to_transformers(name, tmp_path):
    write_decoder(tmp_path / "theirs", FAMILIES[name])
    loaded = load_pretrained(tmp_path / "theirs", causal_lm=True)
    changed = {name: value * 1.01 for name, value in loaded.params.items()}
    save_pretrained(loaded, changed, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"][0].endswith(("LMHeadModel", "CausalLM"))
    batch = decoder_inputs()
    expected = torch_decoder_logits(torch_model(tmp_path / "ours"), batch)
    found = decoder_logits(loaded.model, changed, batch)
    assert np.abs((found - expected) * (batch["attention_mask"][..., None] > 0)).max() <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_generation_equals_theirs(name, tmp_path):
    import torch

    write_decoder(tmp_path, FAMILIES[name])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 96, n).tolist() for n in (3, 11, 7)]
    loaded = load_pretrained(tmp_path, causal_lm=True)
    found = generate(loaded.model, loaded.params, prompts, Sampling(max_new_tokens=20, stop=(2,)))
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    out = torch_model(tmp_path).generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=20, eos_token_id=2, pad_token_id=0
    )
    for ours, theirs in zip(found, out[:, length:].tolist(), strict=True):
        expected = theirs[: theirs.index(2)] if 2 in theirs else theirs
        assert ours == expected
