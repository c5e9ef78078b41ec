"""A model as a program that runs without our code: StableHLO by `jax.export`, or a TensorFlow SavedModel by `jax2tf`.

The program takes any number of rows of any length up to the model's; docs/export.md shows how each is run. Weights lie
beside it, not in it: they would be copied into every compiled version, and a program may have 2 GB at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import InputError
from ftjax.models import SEQ2SEQ, Model, Params, build
from ftjax.models.body import OF_TOKENS
from ftjax.models.layers import ACTIVATIONS, gelu
from ftjax.models.post_norm import PostNormConfig
from ftjax.objectives.classification import class_logits
from ftjax.pretrained.load import Pretrained, merge
from ftjax.pretrained.save import save_tokenizer

PROGRAM, WEIGHTS, SIGNATURE = "program.stablehlo", "params.npz", "signature.json"
PLATFORMS = ("cpu", "cuda", "tpu")
ERF_ENDS = 3.7439211627767994  # beyond, erf is ±1 in float32
ERF = (
    (
        *(0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861),
        *(0.18520832239976145, 1.128379143519084),
    ),
    (
        *(-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667),
        *(0.11098505178285362, 0.49746925110067538, 1.0),
    ),
)
"""Coefficients of the two polynomials in y² whose quotient is erf(y) / y, the highest power first."""

Inputs = dict[str, Any]


def input_names(model: Model) -> tuple[str, ...]:
    """What the program takes, int32 (batch, length) each; token types only where the model tells them apart."""
    types = isinstance(model.config, PostNormConfig) and model.config.token_types > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if types else ()))


def logits_of(model: Model) -> Callable[[Params, Inputs], jax.Array]:
    """(params, inputs) -> float32 logits: (batch, classes) of a classifier, (batch, length, classes) of one of tokens, else
    (batch, length, vocabulary).

    Raises InputError for a model without a head, and for one with an encoder and a decoder.
    """
    heads = dict(model.heads)
    if type(model.config) in SEQ2SEQ:
        raise InputError(
            f"--export-format: a {model.config.model_type} has an encoder and a decoder, which no program holds yet."
        )
    if not (heads["num_labels"] or heads["causal_lm"] or heads["masked_lm"]):
        raise InputError("--export-format: the model has neither a classifier nor a language model's head, so no logits.")

    def run(params: Params, inputs: Inputs) -> jax.Array:
        batch = {"token_type_ids": jnp.zeros_like(inputs["input_ids"]), **inputs}
        if heads["num_labels"]:
            return class_logits(model, params, batch, None)
        module = model.bind(params)
        return module.vocabulary_logits(module.hidden_states(batch)[-1])

    return run


def signature(pretrained: Pretrained) -> dict[str, Any]:
    """What signature.json says: inputs, the output, the classes' names, the longest row."""
    by_token = not pretrained.labels or pretrained.classifier in OF_TOKENS
    output = ["batch", *(["length"] if by_token else []), len(pretrained.labels) or pretrained.model.config.vocab_size]
    return {
        "inputs": {name: {"dtype": "int32", "shape": ["batch", "length"]} for name in input_names(pretrained.model)},
        "output": {"logits": {"dtype": "float32", "shape": output}},
        "labels": list(pretrained.labels),
        "max_length": pretrained.model.config.max_length,
    }


def save_stablehlo(pretrained: Pretrained, directory: Path) -> None:
    """Write program.stablehlo, params.npz, signature.json and the tokenizer's files.

    Raises InputError for a model without a head, and where flatbuffers, which jax writes programs with, is missing.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("--export-format stablehlo needs flatbuffers: pip install 'ftjax[stablehlo]'.")
    pretrained = merge(pretrained)
    run, names = logits_of(pretrained.model), input_names(pretrained.model)
    batch, length = jax.export.symbolic_shape("batch, length", constraints=[f"length <= {pretrained.model.config.max_length}"])
    inputs = {name: jax.ShapeDtypeStruct((batch, length), jnp.int32) for name in names}
    program = jax.export.export(jax.jit(run), platforms=PLATFORMS)(pretrained.model.shapes, inputs)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PROGRAM).write_bytes(program.serialize())
    weights: dict[str, Any] = {name: np.asarray(value) for name, value in pretrained.params.items()}
    np.savez(directory / WEIGHTS, **weights)
    _beside(pretrained, directory)


def save_savedmodel(pretrained: Pretrained, directory: Path) -> None:
    """Write a SavedModel whose `serving_default` takes the inputs by name and gives `logits`, and the tokenizer's files.

    Raises InputError for a model without a head, and where TensorFlow is missing.
    """
    tf, jax2tf = tensorflow()
    with spelled_out_gelu():
        _save_savedmodel(tf, jax2tf, merge(pretrained), directory)
    _beside(pretrained, directory)


def _save_savedmodel(tf: Any, jax2tf: Any, pretrained: Pretrained, directory: Path) -> None:
    pretrained = dataclasses.replace(pretrained, model=build(pretrained.model.config, **dict(pretrained.model.heads)))
    names, config = input_names(pretrained.model), pretrained.model.config
    converted = jax2tf.convert(
        logits_of(pretrained.model),
        polymorphic_shapes=[None, dict.fromkeys(names, "(batch, length)")],
        polymorphic_constraints=(f"length <= {config.max_length}",),
        native_serialization_platforms=PLATFORMS,
        with_gradient=False,
    )
    module = tf.Module()
    module.params = {name: tf.Variable(np.asarray(value)) for name, value in pretrained.params.items()}
    specs = [tf.TensorSpec([None, None], tf.int32, name=name) for name in names]

    @functools.partial(tf.function, autograph=False, input_signature=specs)
    def serve(*inputs: Any) -> dict[str, Any]:
        return {"logits": converted(module.params, dict(zip(names, inputs, strict=True)))}

    module.serve = serve
    tf.saved_model.save(module, str(directory), signatures={"serving_default": serve})


@contextlib.contextmanager
def spelled_out_gelu() -> Iterator[None]:
    """While inside, models are built with GELU's `erf` in additions and multiplications.

    TensorFlow is released less often than jax: 2.21 cannot read what jax 0.10.2 writes of `erf`.
    """
    usual = {name: activation for name, activation in ACTIVATIONS.items() if activation is gelu}
    ACTIVATIONS.update(dict.fromkeys(usual, plain_gelu))
    try:
        yield
    finally:
        ACTIVATIONS.update(usual)


def plain_gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by the quotient of polynomials that XLA itself makes of `erf` in float32: within 3e-7 of |x| of it."""
    y = jnp.clip(x * math.sqrt(0.5), -ERF_ENDS, ERF_ENDS)
    above, below = (functools.reduce(lambda sum, c: sum * (y * y) + c, c[1:], jnp.full_like(y, c[0])) for c in ERF)
    return 0.5 * x * (1.0 + y * above / below)


def tensorflow() -> tuple[Any, Any]:
    """(tensorflow, jax2tf), or InputError where they are missing."""
    try:
        import tensorflow as tf
        from jax.experimental import jax2tf
    except ImportError:
        raise InputError("--export-format savedmodel needs TensorFlow: pip install 'ftjax[tf]'.") from None
    return tf, jax2tf


def _beside(pretrained: Pretrained, directory: Path) -> None:
    save_tokenizer(pretrained, directory)
    text = json.dumps(signature(pretrained), indent=2, ensure_ascii=False) + "\n"
    (directory / SIGNATURE).write_text(text, encoding="utf-8")
