"""What an architecture provides: a config, and a body that turns a batch into hidden states layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self

import jax
from flax import nnx

from ftjax.errors import InputError

Classifier = Literal["pooled", "first-token", "last-token"]
"""pooled: a dense layer, its activation and dropout on the first token, then the linear layer, as transformers' classes
for encoders have it. first-token, last-token: dropout and a linear layer on that token's last hidden state."""


@dataclasses.dataclass(frozen=True)
class Pooling:
    """The dense layer of a pooled classifier: its activation, and whether dropout also comes before it."""

    activation: str = "tanh"
    dropout_before: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers that fix a model. An architecture adds its own; names are those of Hugging Face's config.json."""

    model_type: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ("encoder",)
    """Attributes of the body's parts in a model, also the first word of their parameters' names."""
    classifiers: ClassVar[tuple[Classifier, ...]] = ("pooled", "first-token")
    """The classification heads that the architecture knows, its own first."""
    pooling: ClassVar[Pooling] = Pooling()
    causal: ClassVar[bool] = False
    """Whether a position sees only those before it: the language model is then the next token's, not a masked one's."""
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
        try:
            self = cls(**{name: value for name, value in config.items() if name in known})
        except TypeError as error:
            raise InputError(f"{source}: incomplete ({str(error).rpartition('__init__() ')[2]}).") from None
        for name, field in known.items():
            value, kinds = getattr(self, name), str(field.type)
            if value is None and "None" in kinds:
                continue
            if "int" in kinds or "float" in kinds:
                number = float | int if "float" in kinds else int
                if isinstance(value, bool) or not isinstance(value, number):
                    raise InputError(f"{source}: {name} is {value!r}, not a number.")
        sizes = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
        if min(getattr(self, name) for name in sizes) < 1:
            raise InputError(f"{source}: {', '.join(sizes)} must be positive.")
        self.check(config, source)
        return self

    def check(self, config: dict[str, Any], source: str) -> None:
        """Raise InputError for what the architecture cannot do as the dictionary asks."""

    @property
    def head_dropout(self) -> float:
        """The dropout rate of the classification head."""
        return 0.0

    def with_dropout(self, rate: float) -> Self:
        """The same with one rate everywhere."""
        return dataclasses.replace(self, **dict.fromkeys(self.dropout_fields, rate))

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

        readout: only of the position that a classifier reads, (batch, 1, hidden).
        """
        ...

    def finish(self, hidden: jax.Array) -> jax.Array:
        """What comes after the last layer, such as a norm; the shape stays."""
        ...

    def vocabulary(self) -> jax.Array:
        """The word embeddings, (vocabulary, hidden)."""
        ...
