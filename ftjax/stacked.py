"""Layers that are alike in one array a parameter: `decoder.layers.4-27.mlp.up.kernel` is (24, features_in, features_out).

A loop over the layers, and the optimizer after it, then go through as many arrays as one layer has: what is compiled does not
grow with depth. People and files see the names and shapes of single layers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Stacks = tuple[range, ...]
"""Which consecutive layers of a decoder are stacked: numbers of at least two layers each."""

LAYER = re.compile(r"(decoder\.layers\.)(\d+)(\..+)")
STACK = re.compile(r"(.*\.layers\.)(\d+)-(\d+)(\..+)")


def alike(facts: Mapping[str, Hashable], layers: int) -> Stacks:
    """The longest runs, of more than one, of consecutive layers among the first `layers` that have parameters of the same
    names and facts. facts: by parameter name, all that must be the same, such as shape and treatment.
    """
    of_layer: list[dict[str, Hashable]] = [{} for _ in range(layers)]
    for name, fact in facts.items():
        if (found := LAYER.fullmatch(name)) and int(found[2]) < layers:
            of_layer[int(found[2])][found[3]] = fact
    runs = [list(run) for _, run in itertools.groupby(range(layers), of_layer.__getitem__)]
    return tuple(range(run[0], run[-1] + 1) for run in runs if len(run) > 1)


def stack_of(name: str, stacks: Stacks) -> str:
    """The name of the array that holds a parameter: its own, unless its layer is stacked."""
    if found := LAYER.fullmatch(name):
        run = next((run for run in stacks if int(found[2]) in run), None)
        if run is not None:
            return f"{found[1]}{run[0]}-{run[-1]}{found[3]}"
    return name


def members(name: str) -> list[str]:
    """The names of the parameters that an array of this name holds, in the order in which it holds them."""
    if found := STACK.fullmatch(name):
        return [f"{found[1]}{number}{found[4]}" for number in range(int(found[2]), int(found[3]) + 1)]
    return [name]


def is_stack(name: str) -> bool:
    """Whether an array of this name has a leading axis for layers."""
    return STACK.fullmatch(name) is not None


def stack(params: Mapping[str, jax.Array], stacks: Stacks) -> dict[str, jax.Array]:
    """The parameters with those of stacked layers in one array each; what is stacked already stays as it is. Traceable."""
    names = dict.fromkeys(stack_of(name, stacks) for name in params)
    return {n: params[n] if n in params else jnp.stack([params[member] for member in members(n)]) for n in names}


def stacked_shapes(shapes: Mapping[str, jax.ShapeDtypeStruct], stacks: Stacks) -> dict[str, jax.ShapeDtypeStruct]:
    """The same of shapes."""
    return jax.eval_shape(lambda params: stack(params, stacks), dict(shapes))


def unstack(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Every parameter under its own name; those that were stacked are views into arrays on the host."""
    found: dict[str, jax.Array] = {}
    for name, value in params.items():
        found |= dict(zip(members(name), np.asarray(value), strict=True)) if is_stack(name) else {name: value}
    return found
