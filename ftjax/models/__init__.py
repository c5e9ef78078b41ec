"""Architectures as Flax NNX modules, used functionally: a `Model` is static, its parameters are a plain dictionary.

Parameters are ONE FLAT DICTIONARY everywhere in ftjax: dotted name -> array, as in
`{"encoder.layers.0.attention.query.kernel": (hidden, hidden), ...}`. Choosing what trains, saving, and rule tables by
name are then one comprehension each.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax import zero
from ftjax.models import nf4
from ftjax.models.bert import BertConfig
from ftjax.models.body import OF_TOKENS, Classifier, Cloze, Config
from ftjax.models.decoder import Attention, Decoder
from ftjax.models.distilbert import DistilBertConfig
from ftjax.models.electra import ElectraConfig
from ftjax.models.gemma import Gemma2Config, Gemma3Config
from ftjax.models.gpt2 import GPT2Config
from ftjax.models.heads import Remat, TextModel, leading
from ftjax.models.layers import Dense, column_norms, low_rank_weight
from ftjax.models.llama import LlamaConfig, MistralConfig
from ftjax.models.mpnet import MPNetConfig
from ftjax.models.qwen import Qwen2Config, Qwen3Config
from ftjax.models.roberta import RobertaConfig, XlmRobertaConfig
from ftjax.models.t5 import T5, T5Config
from ftjax.stacked import Stacks, alike, members, stack

Params = dict[str, jax.Array]

FAMILIES: tuple[type[Config], ...] = (
    *(BertConfig, RobertaConfig, XlmRobertaConfig, DistilBertConfig, ElectraConfig, MPNetConfig),
    *(GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Gemma2Config, Gemma3Config),
    T5Config,
)
"""The supported architectures: each config says what its model is made of and what its files call the parameters."""
SEQ2SEQ: dict[type[Config], type[T5]] = {T5Config: T5}
"""Those with an encoder and a decoder: config -> the whole model, which has no heads to choose."""
CONFIGS: dict[str, type[Config]] = {config.model_type: config for config in FAMILIES}
"""config.json's `model_type` -> config."""


LORA = (".lora_a", ".lora_b", ".lora_magnitude")
"""How the names end of what low-rank adaptation adds to a dense layer."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adaptation: which dense layers get two small matrices beside their kernel, see `ftjax.models.layers.Dense`.

    modules: dotted names of dense layers. The layer adds scale · (x @ lora_a) @ lora_b with scale = alpha / rank.
    dropout: of x on its way to lora_a. dora: whether the kernel's columns also get magnitudes that train.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]
    dropout: float = 0.0
    dora: bool = False

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture with its heads, without values: hashable, so a jitted function may close over it.

    `shapes` gives every parameter's name, shape and dtype without materialising it. heads: the arguments of `build`.
    frozen: for the embeddings and every layer, whether nothing in it trains, so that its dropout is off; () if all is on.
    remat: what layers compute again in the backward pass, which saves memory, see `TextModel.remembered`.
    hidden_dtype: of what layers hand on and keep for the backward pass; sums, norms and activations are computed in float32.
    attention: "fused" takes the kernels of `flash` and `splash` where they fit, in a step that is mapped over devices (the
    partitioner cannot split kernels); "interpreted" the same on any platform, for tests.
    reduce_dtype: in which gradients of parameters that are in parts (see `ftjax.zero`) are summed over devices.
    logits_bytes: about how many of a vocabulary's logits are held at a time.
    in_4bit: the dense layers whose kernel is kept in 4 bits, see `ftjax.models.nf4`.
    stacks: which consecutive layers run as one loop over their parameters, stacked (see `ftjax.stacked`); () without `scan`.
    """

    config: Config
    graph: nnx.GraphDef[Any]
    paths: tuple[tuple[Any, ...], ...]
    heads: tuple[tuple[str, Any], ...]
    shapes: dict[str, jax.ShapeDtypeStruct] = dataclasses.field(compare=False)
    frozen: tuple[bool, ...] = ()
    lora: Lora | None = None
    in_4bit: tuple[str, ...] = ()
    remat: Remat = "none"
    hidden_dtype: str = "float32"
    attention: Attention = "reference"
    reduce_dtype: str = "float32"
    logits_bytes: int = 2**25
    stacks: Stacks = ()

    def bind(self, params: Params) -> Any:
        """The module with these values in it, a `TextModel` or a `T5`. Cheap and traceable: use it inside jit and grad.

        Parameters may be left out, as long as the parts of the module that need them are not called; one that is smaller
        than its shape is this device's part, gathered when it is read (see `ftjax.zero`). Those of `stacks` are best given
        stacked, or they are here; the first of the layers gets the whole stack.
        """
        precision = dict(self.heads)["precision"]
        held = {members(name)[0]: value for name, value in stack(params, self.stacks).items()}
        names = {path: dotted(path) for path in self.paths}
        dtypes = (precision, self.reduce_dtype)
        leaves = [(path, zero.parameter(held.get(name), self.shapes[name].shape, *dtypes)) for path, name in names.items()]
        module = nnx.merge(self.graph, nnx.from_flat_state(leaves))
        module.remat, module.hidden_dtype = self.remat, self.hidden_dtype
        if isinstance(body := getattr(module, self.config.parts[0]), Decoder):
            body.attention = self.attention
        module.in_parts = any(isinstance(leaf, zero.Part) for path, leaf in leaves if ".layers." in names[path])
        module.stacks = self.stacks
        return module

    def looped(self, facts: Mapping[str, Hashable]) -> Model:
        """The model that runs as one loop those consecutive layers that are alike: in shapes, and in these facts about their
        parameters (by name). Without `scan` (see `build`) as it was.

        A last layer of which a classifier reads one position is none of them.
        """
        heads = dict(self.heads)
        if not (heads["scan"] and self.config.causal):
            return self
        reads_one = (heads["num_labels"] is not None or heads["cloze"] is not None) and not self.of_tokens
        every = {name: (shape.shape, shape.dtype, facts.get(name)) for name, shape in self.shapes.items()}
        return dataclasses.replace(self, stacks=alike(every, self.config.num_hidden_layers - reads_one))

    @property
    def prefix_layers(self) -> int:
        """How many layers, from the first on, are frozen together with all before them: their output never changes."""
        return leading(self.frozen)

    @property
    def of_tokens(self) -> bool:
        """Whether the classifier says something of each token, and so reads all of the last layer's output."""
        return dict(self.heads)["classifier"] in OF_TOKENS

    @property
    def cloze(self) -> Cloze | None:
        """The gap and the words of a classifier that reads them."""
        return dict(self.heads)["cloze"]

    @property
    def template(self) -> tuple[int, int]:
        """How many tokens at the beginning and at the end of every row are no text but a template's."""
        return (0, 0) if self.cloze is None else (self.cloze.before, self.cloze.after)

    @property
    def frozen_readout(self) -> bool:
        """Whether all layers are frozen and of the last one a single position is all that is read."""
        return self.prefix_layers == self.config.num_hidden_layers and not self.of_tokens

    def freeze(self, trained: Collection[str]) -> Model:
        """The model whose embeddings and layers have their dropout off, unless a parameter among `trained` is in them."""
        stages: list[str] = []
        for part in self.config.parts:
            stages += [f"{part}.embeddings.", *(f"{part}.layers.{i}." for i in range(self.config.depth(part)))]
        frozen = tuple(not any(n.startswith(s) for n in trained) for s in stages)
        off = {n: True for n in self.shapes for s, is_off in zip(stages, frozen, strict=True) if is_off and n.startswith(s)}
        return dataclasses.replace(self, frozen=frozen).looped(off)


def dotted(path: tuple[Any, ...]) -> str:
    """('encoder', 'layers', 0) to 'encoder.layers.0'."""
    return ".".join(map(str, path))


def build(
    config: Config,
    *,
    num_labels: int | None = None,
    classifier: Classifier | None = None,
    pooler: bool = False,
    masked_lm: bool = False,
    causal_lm: bool = False,
    scan: bool = False,
    cloze: Cloze | None = None,
    precision: str = "float32",
    lora: Lora | None = None,
    in_4bit: tuple[str, ...] = (),
) -> Model:
    """The model for a config with the heads asked for; nothing is allocated.

    classifier: the kind of classification head; None is the architecture's own.
    cloze: what a classifier of that kind reads; the language model's head, which it needs, is then there in any case.
    scan: a decoder's layers run as one loop, compiled once; see `Decoder.scan`.
    precision: the dtype of the operands of every dot product, "float32" or "bfloat16"; all else is float32.
    """
    chosen: dict[str, Any] = {
        "num_labels": num_labels,
        "classifier": classifier or config.own_classifier,
        "pooler": pooler,
        "masked_lm": masked_lm or (cloze is not None and not config.causal),
        "causal_lm": causal_lm or (cloze is not None and config.causal),
        "cloze": cloze,
    }
    dtype = jnp.dtype(precision)

    def module() -> nnx.Module:
        whole: Any = SEQ2SEQ.get(type(config))
        made = whole(config, dtype) if whole else TextModel(config, **chosen, dtype=dtype)
        for path, part in nnx.iter_modules(made):
            if isinstance(part, Dense) and dotted(path) in in_4bit:
                part.keep_in_4bit()
            if lora is not None and isinstance(part, Dense) and dotted(path) in lora.modules:
                seed = zlib.crc32(dotted(path[-2:]).encode())  # the same in every layer: layers that are alike may be stacked
                part.add_lora(lora.rank, lora.scale, dropout=lora.dropout, dora=lora.dora, seed=seed)
        return made

    graph, state = nnx.split(nnx.eval_shape(module))
    leaves = [(path, leaf) for path, leaf in nnx.to_flat_state(state)]
    shapes = {dotted(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}
    heads = tuple({**chosen, "scan": scan, "precision": precision}.items())
    return Model(config, graph, tuple(path for path, _ in leaves), heads, shapes, lora=lora, in_4bit=in_4bit).looped({})


def with_lora(model: Model, lora: Lora | None) -> Model:
    """The same model with low-rank matrices beside the kernels of `lora.modules`, or without any."""
    return build(model.config, **dict(model.heads), lora=lora, in_4bit=model.in_4bit)


def with_4bit(model: Model, modules: tuple[str, ...]) -> Model:
    """The same model with the kernels of these dense layers in 4 bits."""
    return build(model.config, **dict(model.heads), lora=model.lora, in_4bit=modules)


def kernel_of(params: Params, module: str) -> jax.Array:
    """A dense layer's kernel, float32 (features_in, features_out), also where it is kept in 4 bits."""
    if f"{module}.kernel" in params:
        return params[f"{module}.kernel"].astype(jnp.float32)
    return nf4.dequantize(params[f"{module}.kernel_codes"], params[f"{module}.kernel_scales"])


def merge_lora(model: Model, params: Params) -> Params:
    """Kernels, out of their 4 bits and with what LoRA adds to them, under the names of a model without either; float32."""
    lora = model.lora or Lora(1, 1.0, ())
    merged = {name: value for name, value in params.items() if not name.endswith((*LORA, *nf4.ENDINGS))}
    for name in dict.fromkeys((*model.in_4bit, *lora.modules)):
        kernel = kernel_of(params, name)
        if name in lora.modules:
            kernel = low_rank_weight(kernel, params[f"{name}.lora_a"], params[f"{name}.lora_b"], lora.scale)
        if name in lora.modules and lora.dora:
            gain = params[f"{name}.lora_magnitude"] / column_norms(kernel)
            kernel *= jnp.broadcast_to(gain, kernel.shape)
        merged[f"{name}.kernel"] = kernel
    return merged


def initial_value(name: str, shape: tuple[int, ...], key: jax.Array, initializer_range: float) -> jax.Array:
    """A new parameter, float32: biases 0, norm scales 1, all else normal(0, initializer_range), as BERT does it.

    LoRA's A is uniform within ±1/√features_in and its B is 0, as in Hugging Face's PEFT: training starts from the model.
    The codes of a kernel in 4 bits are uint8, all the same number.
    """
    match name.rsplit(".", 1)[-1]:
        case "bias" | "lora_b":
            return jnp.zeros(shape)
        case "scale" | "kernel_scales" | "lora_magnitude":
            return jnp.ones(shape)
        case "kernel_codes":
            return jnp.full(shape, 0x78, jnp.uint8)
        case "lora_a":
            return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * shape[0] ** -0.5
        case _:
            return initializer_range * jax.random.normal(key, shape)
