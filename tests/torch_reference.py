"""PyTorch's side of the parity tests, and what writes the golden values: python tests/torch_reference.py"""

import json
import sys
import tempfile
from pathlib import Path

import families
import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).resolve().parent.parent


def minilm_inputs():
    """Ids, mask (right, left and no padding) and token types, (4, 20)."""
    rng = np.random.default_rng(0)
    mask = np.ones((4, 20), np.int32)
    mask[0, 12:] = 0
    mask[1, :5] = 0
    mask[2, 3:] = 0
    return {
        "input_ids": rng.integers(0, 30522, (4, 20)).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (4, 20)).astype(np.int32),
    }


def torch_hidden_states(model, inputs):
    """All hidden states and the pooled output of a transformers BertModel, as numpy."""
    import torch

    with torch.no_grad():
        out = model.eval()(**{k: torch.tensor(v).long() for k, v in inputs.items()}, output_hidden_states=True)
    return [h.numpy() for h in out.hidden_states], out.pooler_output.numpy()


def torch_outputs(model, inputs):
    """Logits and all hidden states of a transformers model with a head, as numpy."""
    import torch

    with torch.no_grad():
        out = model.eval()(**{k: torch.tensor(v).long() for k, v in inputs.items()}, output_hidden_states=True)
    return out.logits.numpy(), [state.numpy() for state in out.hidden_states]


def torch_seq2seq(model, inputs, labels):
    """Logits, the encoder's and the decoder's hidden states of a T5ForConditionalGeneration, as numpy."""
    import torch

    with torch.no_grad():
        out = model.eval()(
            input_ids=torch.tensor(inputs["input_ids"]).long(),
            attention_mask=torch.tensor(inputs["attention_mask"]).long(),
            labels=torch.tensor(labels).long(),
            output_hidden_states=True,
        )
    states = (out.encoder_hidden_states, out.decoder_hidden_states)
    return out.logits.numpy(), *([state.numpy() for state in each] for each in states)


def inputs_for(model_type, config):
    """The batch that a family's golden values are made with."""
    inputs = families.inputs(config["pad_token_id"], config.get("type_vocab_size", 2))
    if model_type in ("distilbert", "mpnet"):
        inputs.pop("token_type_ids")
    return inputs


def as_saved(kind, config, *, untied=False):
    """(config.json, shapes by name) of a class of transformers, as it saves them."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as directory:
        made = getattr(transformers, kind)
        model = made(made.config_class(**config))
        if untied:
            model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.save_pretrained(directory)
        saved = json.loads((Path(directory) / "config.json").read_text())
        saved.pop("transformers_version")
        tensors = load_file(Path(directory) / "model.safetensors")
    return saved, {name: list(tensor.shape) for name, tensor in tensors.items()}


def write_family_goldens():
    """tests/golden/families.json, families.npz: every family's files and what PyTorch makes of them."""
    import transformers

    shapes, arrays = {}, {}
    for model_type, (prefix, config) in families.ENCODERS.items():
        for head in families.HEADS:
            if not (model_type == "electra" and head == "ForMaskedLM"):
                labels = {"id2label": dict(enumerate(families.LABELS))} if head == families.HEADS[0] else {}
                shapes[f"{model_type} {head}"] = as_saved(prefix + head, {**config, **labels})
    for name, config in families.T5S.items():
        shapes[f"t5 {name}"] = as_saved("T5ForConditionalGeneration", config, untied="own" in name)
    (GOLDEN / "families.json").write_text(
        "{\n" + ",\n".join(f"{json.dumps(kind)}: {json.dumps(value)}" for kind, value in shapes.items()) + "\n}\n"
    )
    for kind, (config, _) in shapes.items():
        with tempfile.TemporaryDirectory() as directory:
            families.write_golden(Path(directory), kind)
            # In float64, so that the golden values are the same from whatever processor made them.
            model = getattr(transformers, config["architectures"][0]).from_pretrained(directory).double()
        model_type, _, _ = kind.partition(" ")
        if model_type == "t5":
            logits, encoder, decoder = torch_seq2seq(model, families.inputs(), families.targets())
            found = {"logits": logits, "encoder": np.stack(encoder), "decoder": np.stack(decoder)}
        else:
            logits, states = torch_outputs(model, inputs_for(model_type, families.ENCODERS[model_type][1]))
            found = {"logits": logits, "states": np.stack(states)}
        arrays |= {f"{kind}/{name}": families.few(value).astype(np.float32) for name, value in found.items()}
    np.savez_compressed(GOLDEN / "families.npz", **arrays)


def worked_example(model_directory, head):
    """The guide's program in PyTorch, dropout off: 10 losses."""
    import torch
    from transformers import AutoTokenizer, BertModel

    bert = BertModel.from_pretrained(model_directory, add_pooling_layer=False).eval()
    linear = torch.nn.Linear(bert.config.hidden_size, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(head.T))
        linear.bias.zero_()
    optimizer = torch.optim.AdamW([*bert.parameters(), *linear.parameters()])
    encoded = AutoTokenizer.from_pretrained(model_directory)("I love this movie", return_tensors="pt")
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        logits = linear(bert(**encoded).last_hidden_state[:, 0])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def write_decoders():
    """Logits of every family of tests/decoders.py, from transformers' classes."""
    import tempfile

    from decoders import FAMILIES, decoder_inputs, write_decoder
    from test_parity_decoders import torch_decoder_logits, torch_model

    golden = {}
    for name, raw in FAMILIES.items():
        with tempfile.TemporaryDirectory() as directory:
            write_decoder(Path(directory), raw)
            golden[name] = torch_decoder_logits(torch_model(directory), decoder_inputs())[..., ::7]
    np.savez_compressed(GOLDEN / "decoders.npz", **golden)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "experiments")]
    from transformers import BertModel
    from worked_example import head_values

    from ftjax.demo import reviews

    GOLDEN.mkdir(exist_ok=True)
    write_family_goldens()
    directory = str(reviews.model_dir())
    states, pooled = torch_hidden_states(BertModel.from_pretrained(directory), minilm_inputs())
    keep = [state[:, ::4, ::16] for state in states]  # enough to catch any mistake, small enough to commit
    np.savez_compressed(GOLDEN / "minilm.npz", *keep, pooled=pooled[:, ::8], scale=[np.abs(s).max() for s in states])
    write_decoders()
    (GOLDEN / "worked_example.json").write_text(json.dumps(worked_example(directory, head_values(384, 2))) + "\n")
