"""The guide's own example: BERT, a linear layer on last_hidden_state[:, 0], one sentence, AdamW, 10 epochs.

    python experiments/worked_example.py [MODEL] [--dropout 0]

Hardware: any; seconds on a CPU. With dropout off the ten losses equal those of the same program in PyTorch
(tests/test_worked_example.py holds them to 1e-3 relative; golden values from PyTorch 2.13, MiniLM, in tests/golden/).
The linear layer starts from `head_values`, a fixed formula, so that both programs start alike.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.data.tokenize import load_tokenizer
from ftjax.demo import reviews
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification
from ftjax.partition import label
from ftjax.pretrained import load_pretrained
from ftjax.step import create_state, train_step

TEXT, LABEL, EPOCHS = "I love this movie", 1, 10


def head_values(hidden: int, labels: int) -> np.ndarray:
    """Weights (hidden, labels) of the new layer: small, different from one another, the same everywhere."""
    return 0.02 * np.cos(np.arange(hidden * labels, dtype=np.float64)).reshape(hidden, labels).astype(np.float32)


def losses(model: str, dropout: float | None = None) -> list[float]:
    """The loss of every epoch, before its update."""
    loaded = load_pretrained(model, labels=("negative", "positive"), classifier="first-token", dropout=dropout)
    hidden = loaded.model.config.hidden_size
    params = loaded.params | {"classifier.kernel": jnp.asarray(head_values(hidden, 2))}
    labels = label(params, "all", layers=loaded.model.config.num_hidden_layers)
    objective = (Term("classification", 1.0, Classification(loaded.model)),)
    # torch.optim.AdamW's defaults: every parameter decays, biases and norms too, and nothing is clipped
    state = create_state(params, labels, objective, optax.adamw(1e-3, weight_decay=0.01))
    encoded = load_tokenizer(loaded.directory)([TEXT], return_tensors="np", return_token_type_ids=True)
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in encoded.items()}
    batch |= {"labels": jnp.array([LABEL]), "example_ids": jnp.array([0])}
    step = jax.jit(train_step, donate_argnums=0)
    found = []
    for _ in range(EPOCHS):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"][0]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(reviews.model_dir()))
    parser.add_argument("--dropout", type=float, default=None)
    options = parser.parse_args()
    for epoch, loss in enumerate(losses(options.model, options.dropout), start=1):
        print(f"epoch {epoch:2}  loss {loss:.6f}")
