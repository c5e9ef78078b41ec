"""Low-rank adapters against `peft`: written here and read there, the reverse, logits and gradients."""

import dataclasses
import re

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import FAMILIES, decoder_inputs, positions, write_decoder

from ftjax.models import LORA, Lora
from ftjax.pretrained import load_pretrained, merge, save_adapter
from ftjax.pretrained.load import add_lora

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

TARGETS = {
    "bert": r"attention\.(query|output)|mlp\.down",
    "llama": r"attention\.(query|value)|mlp\.(gate|down)",
    "gpt2": r"attention\.(query|value|output)|mlp\.up",
}
CASES = [(family, dora) for family in TARGETS for dora in (False, True)]


def write_base(directory, family):
    if family == "bert":
        families.write_golden(directory, f"bert {families.HEADS[0]}")
    else:
        write_decoder(directory, FAMILIES[family])
    return directory


def inputs_of(family):
    if family != "bert":
        return decoder_inputs()
    rng = np.random.default_rng(0)
    mask = np.ones((4, 13), np.int32)
    mask[0, 9:] = 0
    ids = rng.integers(1, 64, mask.shape).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def torch_base(directory, family):
    import transformers

    kind = transformers.AutoModelForSequenceClassification if family == "bert" else transformers.AutoModelForCausalLM
    return kind.from_pretrained(directory, attn_implementation="eager", dtype="float32").eval()


def torch_logits(model, family):
    import torch

    batch = inputs_of(family)
    given = {name: torch.tensor(value).long() for name, value in batch.items()}
    if family != "bert":
        given["position_ids"] = torch.tensor(positions(batch["attention_mask"])).long()
    return model(**given).logits


def our_logits(model, params, family):
    module, batch = model.bind(params), inputs_of(family)
    hidden = module.hidden_states(batch)[-1]
    return module.classify(hidden) if family == "bert" else module.vocabulary_logits(hidden)


def load(directory, family, **options):
    return load_pretrained(directory, causal_lm=family != "bert", **options)


def with_random_lora(loaded, family, dora, rank=3):
    names = [name.removesuffix(".kernel") for name in loaded.model.shapes if name.endswith(".kernel")]
    modules = tuple(n for n in names if re.fullmatch(rf"(encoder|decoder)\.layers\.\d+\.({TARGETS[family]})", n))
    made = add_lora(loaded, Lora(rank, 5.0, modules, dora=dora))
    rng = np.random.default_rng(1)
    low = {
        n: jnp.asarray(v + 0.1 * rng.standard_normal(v.shape), jnp.float32) for n, v in made.params.items() if n.endswith(LORA)
    }
    return dataclasses.replace(made, params=made.params | low)


@pytest.mark.parametrize(("family", "dora"), CASES)
def test_ours_loads_in_peft_with_equal_logits_and_gradients(family, dora, tmp_path):
    import peft
    import torch

    ours = with_random_lora(load(write_base(tmp_path / "base", family), family), family, dora)
    norm = next(n for n in ours.params if "layers.1.mlp_norm" in n)  # trains beside, as a whole
    ours = dataclasses.replace(ours, params=ours.params | {norm: ours.params[norm] * 1.5})
    heads = ["classifier.kernel", "classifier.bias"] if family == "bert" else []
    trained = [*(n for n in ours.params if n.endswith(LORA)), norm, *heads]
    save_adapter(ours, ours.params, trained, tmp_path / "adapter", base=tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(torch_base(tmp_path / "base", family), str(tmp_path / "adapter"), is_trainable=True)
    theirs.eval()
    weights = np.random.default_rng(2).standard_normal((4, 3) if family == "bert" else (4, 13, 96)).astype(np.float32)
    if family != "bert":
        weights *= inputs_of(family)["attention_mask"][..., None]

    def loss(low):
        logits = our_logits(ours.model, ours.params | low, family)
        return (logits * weights).sum(), logits

    low = {n: v for n, v in ours.params.items() if n.endswith(LORA)}
    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(low)
    expected = torch_logits(theirs, family)
    (expected * torch.tensor(weights)).sum().backward()
    assert np.abs((np.asarray(found) - expected.detach().numpy()) * (weights != 0)).max() <= 1e-4

    named = {n.replace(".default", ""): p.grad.numpy() for n, p in theirs.named_parameters() if "lora_" in n}
    table = ours.model.config.names
    for name in ours.model.lora.modules:
        tensor, _ = table.theirs(f"{name}.kernel")
        whole, _, _ = tensor.partition("/")
        members = [m for m in ours.model.lora.modules if table.theirs(f"{m}.kernel")[0].partition("/")[0] == whole]
        key, order = f"base_model.model.{whole.removesuffix('.weight')}", members.index(name)
        rows = slice(order * 3, order * 3 + 3)  # of the ranks that a joined tensor has
        parts = table.parts(whole) or [whole]
        width = ours.params[f"{name}.lora_b"].shape[1]
        out = slice(parts.index(tensor) * width, (parts.index(tensor) + 1) * width)
        pairs = {"lora_a": named[f"{key}.lora_A.weight"][rows].T, "lora_b": named[f"{key}.lora_B.weight"][out, rows].T}
        if dora:
            pairs["lora_magnitude"] = named[f"{key}.lora_magnitude_vector.weight"][out]
        for part, reference in pairs.items():
            gradient = np.asarray(gradients[f"{name}.{part}"])
            assert np.abs(gradient - reference).max() <= 1e-4 * max(1.0, np.abs(reference).max()), (name, part)

    again = load(tmp_path / "adapter", family)  # and comes back here
    assert again.model.lora == dataclasses.replace(ours.model.lora, modules=again.model.lora.modules)
    assert set(again.model.lora.modules) == set(ours.model.lora.modules)
    assert all(np.allclose(np.asarray(again.params[n]), np.asarray(v), rtol=1e-6) for n, v in ours.params.items())
    plain = merge(again)
    merged = jax.jit(lambda params: our_logits(plain.model, params, family))(plain.params)
    assert np.abs((np.asarray(merged) - np.asarray(found)) * (weights != 0)).max() <= 1e-4


@pytest.mark.parametrize(("family", "dora"), CASES)
def test_an_adapter_of_peft_loads_here(family, dora, tmp_path):
    import peft
    import torch

    base = torch_base(write_base(tmp_path / "base", family), family)
    targets = {"bert": ["query", "value"], "llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[family]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=targets,
        use_dora=dora,
        use_rslora=family == "llama",
        rank_pattern={targets[0]: 2},
        alpha_pattern={targets[1]: 3},
        task_type="SEQ_CLS" if family == "bert" else "CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
        lora_dropout=0.1,
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        expected = torch_logits(theirs.eval(), family).numpy()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load(tmp_path / "base", family, adapter=tmp_path / "adapter")
    assert (ours.model.lora.rank, ours.model.lora.dropout, ours.model.lora.dora) == (4, 0.1, dora)
    found = np.asarray(jax.jit(lambda params: our_logits(ours.model, params, family))(ours.params))
    seen = 1 if family == "bert" else inputs_of(family)["attention_mask"][..., None]
    assert np.abs((found - expected) * seen).max() <= 1e-4
    assert np.abs(expected).max() > 0.1
