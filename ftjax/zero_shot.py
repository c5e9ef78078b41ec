"""Classes without a labelled example: descriptions of the classes against the texts, in three ways.

    similarity   encoders: cosine of the text's embedding and each description's (Yin et al., 2019; sentence-transformers)
    cloze        models with a masked-language-modelling head: which class's word fills the gap (PET, Schick & Schütze, 2021)
    likelihood   decoders: how likely the class's words are after the text (Brown et al., 2020)

All end in scores (texts, classes). Models favour some classes whatever the text says, so scores are calibrated on texts
without labels: every class's scores get the same mean and spread over the texts (for likelihoods this contains the
correction of Holtzman et al., 2021, and Zhao et al., 2021, which subtract what the class gets without a text).
No label of any row is read here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.batches import batches, choose_buckets
from ftjax.data.files import Rows
from ftjax.data.tokenize import Examples, encode, load_tokenizer
from ftjax.errors import InputError
from ftjax.models import Model, Params
from ftjax.objectives import Batch
from ftjax.objectives.contrastive import embeddings
from ftjax.parallel import Compiled, data_mesh, replicate
from ftjax.pretrained import Pretrained

Descriptions = Mapping[str, Sequence[str]]
"""Class name -> what describes it: one text or several."""


def check_descriptions(descriptions: Descriptions) -> None:
    """InputError unless every class has a description and no two classes share one."""
    owner: dict[str, str] = {}
    for label, texts in descriptions.items():
        if not texts or not all(text.strip() for text in texts):
            raise InputError(f"The label {label!r} has an empty description; give it with --description '{label}=...'.")
        for text in texts:
            known = " ".join(text.split()).casefold()
            if owner.setdefault(known, label) != label:
                raise InputError(f"The labels {owner[known]!r} and {label!r} have the same description {text!r}.")
    if len(descriptions) < 2:
        raise InputError("--labels: name at least two, separated by commas.")


def embedding_step(model: Model):  # noqa: ANN201 (the returned step is described below)
    """A step (params, batch) -> mean-pooled last hidden states of unit length, float32 (batch, hidden), dropout off."""

    def step(params: Params, batch: Batch) -> jax.Array:
        rows = embeddings(model, params, batch, None, "mean")
        return rows * jax.lax.rsqrt(jnp.maximum((rows * rows).sum(-1, keepdims=True), 1e-12))

    return step


def embed(pretrained: Pretrained, params: Params, examples: Examples, *, batch_size: int, pad_token_id: int) -> np.ndarray:
    """Unit embeddings of all rows in their order, float32 (rows, hidden)."""
    mesh = data_mesh()
    step, placed = Compiled(embedding_step(pretrained.model), mesh, donate=False), replicate(params, mesh)
    size = -(-batch_size // mesh.size) * mesh.size
    found = np.empty((len(examples), pretrained.model.config.hidden_size), np.float32)
    for batch in batches(examples, choose_buckets(examples.lengths), size, pad_token_id=pad_token_id, seed=None):
        real = batch["example_ids"] >= 0
        found[batch["example_ids"][real]] = np.asarray(step(placed, batch))[real]
    return found


def encoded(pretrained: Pretrained, texts: Sequence[str], what: str, max_length: int) -> Examples:
    """The texts as tokens; InputError for a description that comes out as special tokens only."""
    tokenizer = load_tokenizer(pretrained.directory)
    examples = encode(Rows(list(texts), None, None, what), tokenizer, (), max_length)
    if what == "descriptions":
        special = np.isin(examples.tokens, [*tokenizer.all_special_ids])
        for text, start, end in zip(texts, examples.starts, examples.starts[1:], strict=False):
            if special[start:end].all():
                raise InputError(f"The description {text!r} has no token that the model knows; describe the label otherwise.")
    return examples


def similarities(
    pretrained: Pretrained, params: Params, texts: np.ndarray, descriptions: Descriptions, *, max_length: int = 128
) -> np.ndarray:
    """Cosine of each text with the mean embedding of each class's descriptions: float32 (texts, classes).

    texts: unit embeddings (texts, hidden), see `embed`.
    """
    every = [text for given in descriptions.values() for text in given]
    examples = encoded(pretrained, every, "descriptions", max_length)
    vectors = embed(pretrained, params, examples, batch_size=32, pad_token_id=0)
    owner = np.repeat(np.arange(len(descriptions)), [len(given) for given in descriptions.values()])
    centres = np.stack([vectors[owner == number].mean(0) for number in range(len(descriptions))])
    return texts @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Mean and spread of every class's scores over texts without labels, both (classes,)."""

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Calibration:
        """From the scores (texts, classes) of texts."""
        return cls(scores.mean(0), np.maximum(scores.std(0), 1e-9))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores (texts, classes) with mean 0 and spread 1 in every class."""
        return (scores - self.mean) / self.spread
