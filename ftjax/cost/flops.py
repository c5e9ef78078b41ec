"""How many floating-point operations a training step needs: by formula, and as its program asks for them.

MFU (Chowdhery et al., 2022, PaLM, appendix B) = model FLOPs / (seconds x peak FLOP/s of all devices), where the model
FLOPs are those of the mathematics, whatever an implementation skips or does twice:

    per token     2 for every number of a matrix in the forward pass, 2 more for the gradient of the layer's input where
                  something trains below or in that layer, 2 more where the matrix itself trains: 6 in all with full
    attention     4 x length x hidden a layer and token for scores and mixing, as often again, twice, backwards: 12 in all;
                  half of it in a decoder, where a token sees only those before it
    heads         alike, for every position they read: one an example, the masked ones, or all
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import jax

from ftjax.models import Model
from ftjax.objectives import Objective
from ftjax.objectives.causal_lm import CausalLM
from ftjax.objectives.masked_lm import MaskedLM
from ftjax.partition import Labels

FORMULA = (
    "model FLOPs / (seconds x peak x chips); model FLOPs = tokens x (2 per number of the layers' matrices forward, 2 for "
    "input gradients, 2 for weight gradients, + 4 x length x hidden x layers for attention, half of it for decoders, as often) "
    "+ heads; what is computed again (--remat) and gradients of frozen weights are no part of it"
)
"""In words, for whoever reads a figure."""


def model_flops(model: Model, labels: Labels, objective: Objective, rows: int, length: int, *, prefix: bool = False) -> int:
    """Of one step on `rows` rows of `length` tokens each, by the formula above; every term is a pass through the layers.

    labels: which parameters train. prefix: whether the frozen first layers are no part of the step.
    """
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    first = model.prefix_layers if prefix else 0
    (part,) = model.config.parts
    pairs = 2 if model.config.causal else 4  # a position that sees only those before it sees half of them on average
    passes = 0
    for term in objective:
        total, below = 0, any(labels[name] == "trained" for name in model.shapes if name.startswith(f"{part}.embeddings."))
        for number in range(layers):
            names = [name for name in model.shapes if name.startswith(f"{part}.layers.{number}.")]
            below = below or any(labels[name] == "trained" for name in names)
            attention = pairs * length * hidden * (1 + 2 * below)
            total += (number >= first) * (_matrices(model, labels, names, below) + attention)
        passes += rows * length * total
        masked, causal = isinstance(term.loss, MaskedLM), isinstance(term.loss, CausalLM)
        every = causal or (model.of_tokens and not masked)
        share = term.loss.probability if isinstance(term.loss, MaskedLM) else 1.0
        read = rows * (max(1, math.ceil(share * length)) if masked or every else 1)
        head = r"masked_lm\." if masked else r"lm_head\." if causal else r"(pooler|classifier)\."
        heads = [name for name in model.shapes if re.match(head, name)]
        passes += read * _matrices(model, labels, heads, True)
        if masked or (causal and not heads):  # the word embeddings are the output matrix
            passes += read * _matrices(model, labels, [f"{part}.embeddings.word.embedding"], True)
    return passes


def _matrices(model: Model, labels: Labels, names: Iterable[str], below: bool) -> int:
    """Operations a position that goes through these matrices."""
    sizes = {name: model.shapes[name].size for name in names if len(model.shapes[name].shape) == 2}
    return sum(size * (2 + 2 * below + 2 * (labels[name] == "trained")) for name, size in sizes.items())


def program_flops(function: Any, *arguments: Any) -> int:
    """2 · m · n · k of every dot product that a function asks for, forwards and backwards, loops by their turns.

    What the program leaves out, such as outputs of the last layer that nobody reads, does not count here.
    """
    return _dots(jax.make_jaxpr(function)(*arguments).jaxpr)


def _dots(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
            continue
        inner = [_dots(part) for part in _jaxprs(equation.params.values())]
        if equation.primitive.name == "cond":  # a choice by platform among spellings of the same thing
            total += min(inner, default=0)
        else:
            total += sum(inner) * equation.params.get("length", 1) if equation.primitive.name == "scan" else sum(inner)
    return total


def _jaxprs(values: Iterable[Any]) -> list[Any]:
    """The programs among an equation's parameters."""
    found = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += _jaxprs(value)
        elif hasattr(value, "eqns"):
            found.append(value)
        elif hasattr(getattr(value, "jaxpr", None), "eqns"):
            found.append(value.jaxpr)
    return found
