"""Classes without a labelled example: descriptions of the classes against the texts, in three ways.

    similarity   encoders: cosine of the text's embedding and each description's (Yin et al., 2019, https://arxiv.org/abs/1909.00161;
                 embeddings as in Reimers and Gurevych, 2019, https://arxiv.org/abs/1908.10084)
    cloze        models with a masked-language-modelling head: logit of the class's word in the gap of a template
                 (PET, Schick and Schütze, 2021, https://arxiv.org/abs/2001.07676, section 3.1)
    likelihood   decoders: log-probability of the class's words after the text (Brown et al., 2020, https://arxiv.org/abs/2005.14165)

All end in scores, float32 (texts, classes); the first two by a classifier that can be saved and trained. No label of any row
is read here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.batches import batches, choose_buckets
from ftjax.data.files import Rows
from ftjax.data.template import Template
from ftjax.data.tokenize import Examples, encode, load_tokenizer
from ftjax.descriptions import Descriptions
from ftjax.errors import InputError
from ftjax.likelihood import continuation_logprobs
from ftjax.models import Params
from ftjax.objectives import Batch
from ftjax.parallel import Compiled, replicate
from ftjax.pretrained import Pretrained
from ftjax.pretrained.tensors import read_json
from ftjax.sharding import data_mesh

Step = Callable[[Params, Batch], jax.Array]


def relative(scores: np.ndarray) -> np.ndarray:
    """Scores (..., classes) less their mean over the classes.

    What all classes of a text have in common says nothing about which is right: a long text makes any word less likely, and one
    about films is similar to every description. Where classes are then scaled apart, it would.
    """
    return scores - scores.mean(-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Mean and spread of every class's relative scores over texts without labels, both (classes,).

    Models favour some classes whatever the text says (Zhao et al., 2021, https://arxiv.org/abs/2102.09690; Holtzman et al.,
    2021, https://arxiv.org/abs/2104.08315, subtract what a class gets without its text). Over many texts that is each
    class's mean, if the classes are about equally frequent.
    """

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Calibration:
        """From the scores (texts, classes) of texts."""
        scores = relative(scores)
        return cls(scores.mean(0), np.maximum(scores.std(0), 1e-9))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores (texts, classes) with mean 0 in every class and the classes' own mean spread in each."""
        return (relative(scores) - self.mean) / self.spread * self.spread.mean()


def per_row(step: Step, pretrained: Pretrained, examples: Examples, batch_size: int, pad_token_id: int) -> np.ndarray:
    """What a step (params, batch) -> (batch, n) gives for every row, float32 (rows, n), in the order of the rows."""
    mesh = data_mesh()
    program, params = Compiled(step, mesh, donate=False), replicate(pretrained.params, mesh)
    size = -(-batch_size // mesh.size) * mesh.size
    numbers, found = [], []
    for batch in batches(examples, choose_buckets(examples.lengths), size, pad_token_id=pad_token_id, seed=None):
        real = batch["example_ids"] >= 0
        numbers.append(batch["example_ids"][real])
        found.append(np.asarray(program(params, batch))[real])
    return np.concatenate(found)[np.argsort(np.concatenate(numbers))]


def tokenised(texts: Sequence[str], tokenizer: Any, max_length: int, what: str) -> Examples:
    """The texts as tokens, without labels."""
    return encode(Rows(list(texts), None, None, what), tokenizer, (), max_length)


def described(pretrained: Pretrained, descriptions: Descriptions, *, max_length: int, batch_size: int) -> Pretrained:
    """The model whose classifier is the descriptions: a class's weights are the mean embedding of its texts, at length 1.

    The head is "mean" (see `ftjax.models.body.Classifier`), so logits are √hidden times the cosine of text and class, a
    temperature of about 0.05 as in contrastive training. It can be saved, used and trained as any other classifier.
    pretrained: with such a head for these classes. InputError for a description of which the tokenizer knows nothing.
    """
    tokenizer = load_tokenizer(pretrained.directory)
    every = [text for texts in descriptions.values() for text in texts]
    examples = tokenised(every, tokenizer, max_length, "descriptions")
    nothing = np.isin(examples.tokens, [*tokenizer.all_special_ids])
    for text, start, end in zip(every, examples.starts, examples.starts[1:], strict=False):
        if nothing[start:end].all():
            raise InputError(f"The description {text!r} has no token that the model knows; describe the label otherwise.")

    def embedding(params: Params, batch: Batch) -> jax.Array:
        return pretrained.model.bind(params).hidden_states(batch, readout=True)[-1][:, 0]

    vectors = per_row(embedding, pretrained, examples, batch_size, tokenizer.pad_token_id or 0)
    owner = np.repeat(np.arange(len(descriptions)), [len(texts) for texts in descriptions.values()])
    centres = np.stack([vectors[owner == number].mean(0) for number in range(len(descriptions))])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    head = {"classifier.kernel": jnp.asarray(centres.T), "classifier.bias": jnp.zeros(len(descriptions))}
    return dataclasses.replace(pretrained, params={**pretrained.params, **head})


def calibrated(pretrained: Pretrained, calibration: Calibration) -> Pretrained:
    """The model whose logits are the calibrated ones: calibration is part of the classifier's weights."""
    factor = calibration.spread.mean() / calibration.spread
    kernel, bias = (relative(np.asarray(pretrained.params[f"classifier.{name}"])) for name in ("kernel", "bias"))
    head = {"classifier.kernel": kernel * factor, "classifier.bias": (bias - calibration.mean) * factor}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in head.items()}
    return dataclasses.replace(pretrained, params={**pretrained.params, **params})


def likelihood_scores(
    pretrained: Pretrained,
    descriptions: Descriptions,
    texts: Sequence[str],
    *,
    template: str,
    max_length: int,
    batch_size: int,
) -> np.ndarray:
    """Log-probability of each class's words after the template with the text; the mean over a class's descriptions.

    InputError for a template that does not end with the label, and for a model without a trained head.
    """
    if any(name.startswith("lm_head.") for name in pretrained.new):
        raise InputError(f"{pretrained.directory}: has no head for the next token (lm_head.weight), which likelihood needs.")
    tokenizer = load_tokenizer(pretrained.directory)
    shape = Template.of(template, tokenizer, causal=True, max_length=max_length)
    continuations = [
        tokenizer(shape.word_lead + words, add_special_tokens=False)["input_ids"]
        for every in descriptions.values()
        for words in every
    ]
    owner = np.repeat(np.arange(len(descriptions)), [len(every) for every in descriptions.values()])
    room = max_length - max(map(len, continuations))
    if room <= len(shape.before) + len(shape.after) or not all(continuations):
        raise InputError(f"--max-length {max_length}: a description must have at least one token and leave room for the text.")
    examples = shape.encode(texts, tokenizer, room)
    prompts = [examples.tokens[a:b].tolist() for a, b in zip(examples.starts, examples.starts[1:], strict=False)]
    found = continuation_logprobs(pretrained.model, pretrained.params, prompts, continuations, batch_size=batch_size)
    scores = np.stack([values.sum(1) for values in found], axis=1)
    return np.stack([scores[:, owner == number].mean(1) for number in range(len(descriptions))], axis=1)


def kept(labels: Sequence[str], scored: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> dict[str, Any]:
    """What scores.json holds, so that another run may take the scores into account.

    scored: "unlabeled" or "test" -> texts, scores (texts, classes).
    """
    files = {name: {"texts_sha256": _digest(texts), "scores": scores.tolist()} for name, (texts, scores) in scored.items()}
    return {"labels": list(labels), **files}


def read_scores(directory: Path, name: str, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Scores float32 (texts, classes in the order of `labels`) out of a run's scores.json, see `kept`.

    InputError where there are none, or not of these texts and classes.
    """
    path = directory / "scores.json"
    if not path.is_file():
        raise InputError(f"--scores-from {directory}: has no scores.json; name the --output of a ftjax zero-shot run.")
    found = read_json(path)
    theirs, of_file = found.get("labels"), found.get(name)
    if of_file is None:
        raise InputError(f"--scores-from {directory}: has no scores of its --{name}-file; run it with this one.")
    if not isinstance(theirs, list) or sorted(map(str, theirs)) != sorted(labels):
        raise InputError(f"--scores-from {directory}: is about the classes {theirs}, not about {', '.join(labels)}.")
    if not isinstance(of_file, dict) or of_file.get("texts_sha256") != _digest(texts):
        raise InputError(f"--scores-from {directory}: its --{name}-file held other texts; give both runs the same file.")
    try:
        scores = np.asarray(of_file["scores"], np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        scores = np.zeros(0, np.float32)
    if scores.shape != (len(texts), len(labels)) or not np.isfinite(scores).all():
        raise InputError(f"{path}: not a number for every text and class; run that ftjax zero-shot again.")
    return scores[:, [theirs.index(label) for label in labels]]


def _digest(texts: Sequence[str]) -> str:
    """SHA-256 of the texts and their order."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def together(judges: Sequence[np.ndarray], calibrate_on: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over judges of their scores (texts, classes), each with mean 0 and spread 1 over the texts to calibrate on.

    Judges that err independently are right more often together, and surer where they agree (Lakshminarayanan et al., 2017,
    https://arxiv.org/abs/1612.01474, average a classifier's copies; here they differ in kind).
    """
    calibrations = [Calibration.of(scores) for scores in calibrate_on]
    every = zip(judges, calibrations, strict=True)
    return np.mean([calibration(scores) / calibration.spread.mean() for scores, calibration in every], axis=0)


def surest(scores: np.ndarray, share: float) -> np.ndarray:
    """Class numbers int64 (texts,) of the texts that are surest, as many of each class; -1 for the others.

    Sure is a text whose score for its class is far above that for the next one. share: of all texts.
    """
    ordered = np.sort(scores, axis=1)
    margin, prediction = ordered[:, -1] - ordered[:, -2], scores.argmax(1)
    most = round(share * len(scores) / scores.shape[1])
    chosen = np.full(len(scores), -1)
    for number in range(scores.shape[1]):
        rows = np.flatnonzero(prediction == number)
        chosen[rows[np.argsort(-margin[rows], kind="stable")][:most]] = number
    return chosen
