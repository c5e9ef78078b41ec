"""L(y, f(x; θ)) where y is a text: cross-entropy of each of its tokens, given those before it and the text x."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.models.t5 import T5Config, shift_right
from ftjax.objectives import Average, Batch
from ftjax.objectives.classification import cross_entropy


def seq2seq_logits(model: Model, params: Params, batch: Batch, seeds: jax.Array | None = None) -> jax.Array:
    """float32 (batch, target, vocabulary): what each token of `batch["labels"]` is predicted from those before it.

    batch: `input_ids` and `attention_mask`, (batch, source); `labels`, int32 (batch, target), -100 where there is no token.
    seeds: uint32 (batch,) for dropout; None: the result is deterministic.
    """
    config = model.config
    assert isinstance(config, T5Config)
    module = model.bind(params)
    how = {"seeds": seeds, "frozen": model.frozen}
    encoded = module.encode(batch["input_ids"], batch["attention_mask"], **how)[-1]
    decoded = module.decode(shift_right(batch["labels"], config), encoded, batch["attention_mask"], **how)[-1]
    return module.vocabulary_logits(decoded)


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """Cross-entropy of the tokens of `batch["labels"]`, each of which weighs 1; also the metric `token_accuracy`."""

    reads_vocabulary: ClassVar[bool] = True

    model: Model

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        logits = seq2seq_logits(self.model, params, batch, seeds)
        losses, weights = cross_entropy(logits, batch["labels"])
        right = weights * (logits.argmax(-1) == batch["labels"]).astype(jnp.float32)
        return (losses.sum(), weights.sum()), {"token_accuracy": (right.sum(), weights.sum())}
