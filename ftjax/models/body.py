"""What an architecture provides: a config, and a body that turns a batch into hidden states layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.errors import InputError

if TYPE_CHECKING:
    from ftjax.models.names import NameTable

MOST_LAYERS = 1000  # a config.json may say anything, and a layer takes memory before any weight is read
VALUES = {"bool": (bool, "true or false"), "int": (int, "a number"), "float": (float | int, "a number"), "str": (str, "a text")}
"""The type of a config's field -> what config.json may have for it, and what to call that."""

Classifier = Literal["pooled", "first-token", "last-token", "mean", "cloze", "every-token", "span"]
"""pooled: a dense layer, its activation and dropout on the first token, then the linear layer, as transformers' classes
for encoders have it. first-token, last-token: dropout and a linear layer on that token's last hidden state. mean: the
same on the mean of the last hidden states over the tokens, scaled to the length √hidden: what encoders trained for
sentence embeddings (Reimers and Gurevych, 2019, https://arxiv.org/abs/1908.10084) carry their meaning in. cloze: the language
model's own head, of which the logits of a few words in a gap are the classes', see `Cloze`. every-token: dropout and a linear
layer on each token, as transformers' classes for token classification. span: a linear layer from each token to two numbers, of
a span's beginning and of its end, as their classes for question answering."""
OF_TOKENS: tuple[Classifier, ...] = ("every-token", "span")
"""Those that say something of each token; the others read one position, or the mean."""


@dataclasses.dataclass(frozen=True)
class Cloze:
    """What a classifier by words in a gap (PET, Schick and Schütze, 2021, https://arxiv.org/abs/2001.07676) knows of its rows.

    words: token ids, one or more a class, whose logits are averaged. before, after: how many tokens of a row, special ones
    included, stand before and after the text itself and are the same in every row. gap: the position whose logits are read,
    from the row's first token or, below 0, from its end.
    """

    words: tuple[tuple[int, ...], ...]
    before: int
    after: int
    gap: int


@dataclasses.dataclass(frozen=True)
class Pooling:
    """The dense layer of a pooled classifier: its activation, and whether dropout also comes before it."""

    activation: str = "tanh"
    dropout_before: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers that fix a model. An architecture adds its own; names are those of Hugging Face's config.json."""

    model_type: ClassVar[str]
    table: ClassVar[NameTable]
    """What its files call the parameters; see `names`."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Names in config.json -> fields here, where they differ; "" for what it has besides and does not mean."""
    parts: ClassVar[tuple[str, ...]] = ("encoder",)
    """Attributes of the body's parts in a model, also the first word of their parameters' names."""
    classifiers: ClassVar[tuple[Classifier, ...]] = ("pooled", "first-token", "mean", "cloze", *OF_TOKENS)
    """The classification heads that the architecture knows, its own first."""
    pooling: ClassVar[Pooling] = Pooling()
    packs: ClassVar[tuple[Classifier, ...]] = ()
    """Those of them that can read several texts in one row, see `ftjax.data.packing`."""
    causal: ClassVar[bool] = False
    """Whether a position sees only those before it: the language model is then the next token's, not a masked one's."""
    has_masked_lm: ClassVar[bool] = True
    """Whether there is a masked-language-modelling head."""
    dropout_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that are dropout rates of the body."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    @classmethod
    def from_dict(cls, config: dict[str, Any], source: str) -> Self:
        """Read config.json's dictionary; raises InputError naming `source` for what would change the result unnoticed."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        named = {cls.renamed.get(name, name): value for name, value in config.items()}
        spelled = {ours: theirs for theirs, ours in cls.renamed.items()}
        try:
            self = cls(**{name: value for name, value in named.items() if name in known})
        except TypeError as error:
            raise InputError(f"{source}: incomplete ({str(error).rpartition('__init__() ')[2]}).") from None
        for name, field in known.items():
            value, (plain, optional, _) = getattr(self, name), str(field.type).partition(" | None")
            if value is None and optional:
                continue
            kind, expected = VALUES.get(plain, (object, ""))
            if not isinstance(value, kind) or (isinstance(value, bool) and plain in ("int", "float")):
                raise InputError(f"{source}: {spelled.get(name, name)} is {value!r}, not {expected}.")
        sizes = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
        if min(getattr(self, name) for name in sizes) < 1:
            raise InputError(f"{source}: {', '.join(sizes)} must be positive.")
        if big := next((name for name in known if isinstance(size := getattr(self, name), int) and size >= 2**31), None):
            raise InputError(f"{source}: {spelled.get(big, big)} is {getattr(self, big)}, which no model has.")
        for layers in map(self.depth, self.parts):
            if not 1 <= layers <= MOST_LAYERS:
                raise InputError(f"{source}: {layers} layers; must be from 1 to {MOST_LAYERS}.")
        self.check(config, source)
        return self

    def check(self, config: dict[str, Any], source: str) -> None:
        """Raise InputError for what the architecture cannot do as the dictionary asks."""

    def body(self, dtype: jnp.dtype) -> Body:
        """The body of a model with heads. dtype: of the operands of dot products."""
        raise NotImplementedError

    @property
    def names(self) -> NameTable:
        """What the files of a model with this config call its parameters."""
        return self.table

    def for_files(self, names: Collection[str]) -> Self:
        """The config of a model whose files hold tensors of these names (as the name table spells them)."""
        return self

    def depth(self, part: str) -> int:
        """How many layers a part has."""
        return self.num_hidden_layers

    @property
    def own_classifier(self) -> Classifier | None:
        """The classification head that transformers' class for the architecture has; None without one."""
        return next(iter(self.classifiers), None)

    @property
    def max_length(self) -> int:
        """The most tokens a row may have."""
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        """The dropout rate of the architecture's own classification head."""
        return 0.0

    def dropout_of(self, classifier: Classifier | None) -> float:
        """The dropout rate of a classification head; transformers' classes have none before `span`."""
        return 0.0 if classifier == "span" else self.head_dropout

    @property
    def masked_lm_activation(self) -> str:
        """The activation of the masked-language-modelling head."""
        return "gelu"

    def with_dropout(self, rate: float) -> Self:
        """The same with one rate everywhere."""
        return dataclasses.replace(self, **{name: rate for name in self.dropout_fields})  # type: ignore[arg-type]

    def only(self, config: dict[str, Any], source: str, **plain: Any) -> None:
        """InputError where the dictionary sets one of these otherwise: that is not supported."""
        for name, value in plain.items():
            if config.get(name, value) != value:
                raise InputError(
                    f"{source}: {name}={config[name]!r} is not supported for {self.model_type}; only {value!r} is."
                )


class Body(Protocol):
    """An encoder or a decoder. `seeds` (uint32 (batch,), see `ftjax.random`) turns dropout on; None leaves it off."""

    layers: nnx.List

    def embed(self, batch: Mapping[str, jax.Array], seeds: jax.Array | None) -> jax.Array:
        """`input_ids` and what belongs to them to float32 (batch, length, hidden), what the first layer takes."""
        ...

    def context(self, batch: Mapping[str, jax.Array]) -> Any:
        """What all layers need besides hidden states: the attention's bias, positions. Needs no `input_ids`."""
        ...

    def layer(
        self, number: int, hidden: jax.Array, context: Any, seeds: jax.Array | None, *, readout: bool = False
    ) -> jax.Array:
        """The output of a layer for its input (batch, length, hidden).

        readout: only of the position that a classifier reads, (batch, 1, hidden), or of those that the batch `reads`.
        """
        ...

    def finish(self, hidden: jax.Array) -> jax.Array:
        """What comes after the last layer, such as a norm; the shape stays."""
        ...

    def vocabulary(self) -> jax.Array:
        """The word embeddings, (vocabulary, hidden)."""
        ...
