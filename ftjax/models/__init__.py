"""Architectures as Flax NNX modules, used functionally: a `Model` is static, its parameters are a plain dictionary.

Parameters are ONE FLAT DICTIONARY everywhere in ftjax: dotted name -> array, as in
`{"encoder.layers.0.attention.query.kernel": (hidden, hidden), ...}`. Choosing what trains, saving, and rule tables by
name are then one comprehension each.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.bert import BertConfig
from ftjax.models.heads import Classifier, TextModel

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture with its heads, without values: hashable, so a jitted function may close over it.

    `shapes` gives every parameter's name, shape and dtype without materialising it.
    """

    config: BertConfig
    graph: nnx.GraphDef[TextModel]
    paths: tuple[tuple[Any, ...], ...]
    shapes: dict[str, jax.ShapeDtypeStruct] = dataclasses.field(compare=False)

    def bind(self, params: Params) -> TextModel:
        """The module with these values in it. Cheap and traceable: use it inside jit, grad and friends."""
        leaves = [(path, nnx.Param(params[dotted(path)])) for path in self.paths]
        return nnx.merge(self.graph, nnx.from_flat_state(leaves))


def dotted(path: tuple[Any, ...]) -> str:
    """('encoder', 'layers', 0) to 'encoder.layers.0'."""
    return ".".join(map(str, path))


def build(
    config: BertConfig,
    *,
    num_labels: int | None = None,
    classifier: Classifier = "pooled",
    pooler: bool = False,
    masked_lm: bool = False,
    precision: str = "float32",
) -> Model:
    """The model for a config with the heads asked for; nothing is allocated.

    precision: the dtype of the operands of every dot product, "float32" or "bfloat16"; all else is float32.
    """
    abstract = nnx.eval_shape(
        lambda: TextModel(
            config,
            num_labels=num_labels,
            classifier=classifier,
            pooler=pooler,
            masked_lm=masked_lm,
            dtype=jnp.dtype(precision),
        )
    )
    graph, state = nnx.split(abstract)
    leaves = [(path, leaf) for path, leaf in nnx.to_flat_state(state)]
    shapes = {dotted(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}
    return Model(config, graph, tuple(path for path, _ in leaves), shapes)


def initial_value(name: str, shape: tuple[int, ...], key: jax.Array, initializer_range: float) -> jax.Array:
    """A new parameter as BERT initialises it: biases 0, norm scales 1, all else normal(0, initializer_range), float32."""
    match name.rsplit(".", 1)[-1]:
        case "bias":
            return jnp.zeros(shape)
        case "scale":
            return jnp.ones(shape)
        case _:
            return initializer_range * jax.random.normal(key, shape)
