"""Architectures as Flax NNX modules, used functionally: a `Model` is static, its parameters are a plain dictionary.

Parameters are ONE FLAT DICTIONARY everywhere in ftjax: dotted name -> array, as in
`{"encoder.layers.0.attention.query.kernel": (hidden, hidden), ...}`. Choosing what trains, saving, and rule tables by
name are then one comprehension each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.bert import BertConfig, BertEncoder
from ftjax.models.body import Body, Classifier, Config
from ftjax.models.heads import TextModel, leading
from ftjax.models.layers import Dense

Params = dict[str, jax.Array]

BODIES: dict[type[Config], type[Body]] = {BertConfig: BertEncoder}
"""The supported architectures: config -> body. Their files' names for parameters are in `ftjax.pretrained.names`."""
CONFIGS: dict[str, type[Config]] = {config.model_type: config for config in BODIES}
"""config.json's `model_type` -> config."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (Hu et al., 2021): which dense layers get two small matrices beside their kernel.

    modules: dotted names of dense layers. The layer adds scale · (x @ lora_a) @ lora_b with scale = alpha / rank.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture with its heads, without values: hashable, so a jitted function may close over it.

    `shapes` gives every parameter's name, shape and dtype without materialising it. heads: the arguments of `build`.
    frozen: for the embeddings and every layer, whether nothing in it trains, so that its dropout is off; () if all is on.
    remat: whether layers are computed again in the backward pass, which saves memory.
    """

    config: Config
    graph: nnx.GraphDef[TextModel]
    paths: tuple[tuple[Any, ...], ...]
    heads: tuple[tuple[str, Any], ...]
    shapes: dict[str, jax.ShapeDtypeStruct] = dataclasses.field(compare=False)
    frozen: tuple[bool, ...] = ()
    lora: Lora | None = None
    remat: bool = False

    def bind(self, params: Params) -> TextModel:
        """The module with these values in it. Cheap and traceable: use it inside jit, grad and friends.

        Parameters may be left out, as long as the parts of the module that need them are not called.
        """
        leaves = [(path, nnx.Param(params.get(dotted(path)))) for path in self.paths]
        module = nnx.merge(self.graph, nnx.from_flat_state(leaves))
        module.remat = self.remat
        return module

    @property
    def prefix_layers(self) -> int:
        """How many layers, from the first on, are frozen together with all before them: their output never changes."""
        return leading(self.frozen)

    def freeze(self, trained: Collection[str]) -> Model:
        """The model whose embeddings and layers have their dropout off, unless a parameter among `trained` is in them."""
        (part,) = self.config.parts
        stages = [f"{part}.embeddings.", *(f"{part}.layers.{i}." for i in range(self.config.num_hidden_layers))]
        return dataclasses.replace(self, frozen=tuple(not any(n.startswith(s) for n in trained) for s in stages))


def dotted(path: tuple[Any, ...]) -> str:
    """('encoder', 'layers', 0) to 'encoder.layers.0'."""
    return ".".join(map(str, path))


def build(
    config: Config,
    *,
    num_labels: int | None = None,
    classifier: Classifier = "pooled",
    pooler: bool = False,
    masked_lm: bool = False,
    precision: str = "float32",
    lora: Lora | None = None,
) -> Model:
    """The model for a config with the heads asked for; nothing is allocated.

    precision: the dtype of the operands of every dot product, "float32" or "bfloat16"; all else is float32.
    """
    heads = {
        "num_labels": num_labels,
        "classifier": classifier,
        "pooler": pooler,
        "masked_lm": masked_lm,
        "precision": precision,
    }

    def module() -> TextModel:
        made = TextModel(
            config,
            BODIES[type(config)],
            num_labels=num_labels,
            classifier=classifier,
            pooler=pooler,
            masked_lm=masked_lm,
            dtype=jnp.dtype(precision),
        )
        for path, part in nnx.iter_modules(made):
            if lora is not None and isinstance(part, Dense) and dotted(path) in lora.modules:
                part.add_lora(lora.rank, lora.scale)
        return made

    graph, state = nnx.split(nnx.eval_shape(module))
    leaves = [(path, leaf) for path, leaf in nnx.to_flat_state(state)]
    shapes = {dotted(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}
    return Model(config, graph, tuple(path for path, _ in leaves), tuple(heads.items()), shapes, lora=lora)


def with_lora(model: Model, lora: Lora) -> Model:
    """The same model with low-rank matrices beside the kernels of `lora.modules`."""
    return build(model.config, **dict(model.heads), lora=lora)


def merge_lora(model: Model, params: Params) -> Params:
    """Kernels with their low-rank matrices added in, under the names of a model without them; float32."""
    if model.lora is None:
        return params
    merged = {name: value for name, value in params.items() if not name.endswith((".lora_a", ".lora_b"))}
    for name in model.lora.modules:
        update = jnp.matmul(params[f"{name}.lora_a"], params[f"{name}.lora_b"], precision="highest")
        merged[f"{name}.kernel"] = params[f"{name}.kernel"].astype(jnp.float32) + model.lora.scale * update
    return merged


def initial_value(name: str, shape: tuple[int, ...], key: jax.Array, initializer_range: float) -> jax.Array:
    """A new parameter, float32: biases 0, norm scales 1, all else normal(0, initializer_range), as BERT does it.

    LoRA's A is uniform within ±1/√features_in and its B is 0, as in Hugging Face's PEFT: training starts from the model.
    """
    match name.rsplit(".", 1)[-1]:
        case "bias" | "lora_b":
            return jnp.zeros(shape)
        case "scale":
            return jnp.ones(shape)
        case "lora_a":
            return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * shape[0] ** -0.5
        case _:
            return initializer_range * jax.random.normal(key, shape)
