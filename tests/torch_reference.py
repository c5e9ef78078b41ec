"""PyTorch's side of the parity tests, and what writes the golden values: python tests/torch_reference.py"""

import json
import sys
from pathlib import Path

import numpy as np

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
    import reviews
    from transformers import BertModel
    from worked_example import head_values

    GOLDEN.mkdir(exist_ok=True)
    directory = str(reviews.model_dir())
    states, pooled = torch_hidden_states(BertModel.from_pretrained(directory), minilm_inputs())
    keep = [state[:, ::4, ::16] for state in states]  # enough to catch any mistake, small enough to commit
    np.savez_compressed(GOLDEN / "minilm.npz", *keep, pooled=pooled[:, ::8], scale=[np.abs(s).max() for s in states])
    write_decoders()
    (GOLDEN / "worked_example.json").write_text(json.dumps(worked_example(directory, head_values(384, 2))) + "\n")
