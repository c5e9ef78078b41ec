"""L_self(x, f(x; θ)): masked language modelling (Devlin et al., 2019, section 3.1), which needs no label."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.models import Model, Params
from ftjax.objectives import NO_LABEL, Average, Batch, fixed_seeds
from ftjax.objectives.augment import content
from ftjax.objectives.classification import cross_entropy
from ftjax.random import fold_in, uniform

CHOOSE_SEED, REPLACE_SEED, TOKEN_SEED, MODEL_SEED = range(4)  # an example's uses of its seed
FILLING_ROUNDS = 3  # of `choose_words`; enough for all of 2,000 review sentences (two left 2 tokens of 7,621 out)


class Masked(NamedTuple):
    """A masked batch: input_ids (batch, length); positions and labels (batch, most), labels -100 where unused."""

    input_ids: jax.Array
    positions: jax.Array
    labels: jax.Array


def wordpiece_continuations(tokens: Sequence[str | None], vocab_size: int) -> bytes:
    """The table `MaskedLM.continuations` of a WordPiece vocabulary: one byte an id, 1 where its token starts with ##.

    tokens: by id, None for one without. vocab_size: the model's, which may be larger; ids without a token start words.
    """
    return bytes((token or "").startswith("##") for token in tokens).ljust(vocab_size, b"\0")


def choose_words(maskable: jax.Array, continues: jax.Array, u: jax.Array, wanted: jax.Array) -> jax.Array:
    """Choose whole words in random order, each that still fits: bool (batch, length), at most `wanted` tokens a row.

    maskable, continues bool and u float32 (batch, length), wanted int32 (batch,). A word is a maskable token and the
    maskable ones right after it that continue it; word w of a row has its place in the order from u[:, w]. A word that
    does not fit is passed over and a shorter one may follow, as in BERT's whole-word masking
    (https://github.com/google-research/bert, 2019); a row whose words are all longer than wanted has none.
    """
    rows = jnp.arange(len(maskable))[:, None]
    before = jnp.pad(maskable[:, :-1], ((0, 0), (1, 0)))
    word = jnp.maximum(jnp.cumsum(maskable & ~(continues & before), -1) - 1, 0)  # each token's word, counted from 0
    sizes = jnp.zeros(maskable.shape, jnp.int32).at[rows, word].add(maskable.astype(jnp.int32))
    order = jnp.argsort(u, axis=-1)
    sizes = jnp.take_along_axis(sizes, order, axis=1)

    # One word after the other would be a loop over the row. In a round all that fits up to the first word too long is
    # taken at once; that word never fits again, so enough rounds give what the loop gives.
    taken = jnp.zeros(maskable.shape, bool)
    for _ in range(FILLING_ROUNDS):
        left = (wanted - jnp.where(taken, sizes, 0).sum(-1))[:, None]
        fits = ~taken & (sizes <= left)
        taken |= fits & (jnp.cumsum(jnp.where(fits, sizes, 0), -1) <= left)
    by_word = jnp.zeros(maskable.shape, bool).at[rows, order].set(taken)
    return maskable & jnp.take_along_axis(by_word, word, axis=1)


def mask_tokens(
    input_ids: jax.Array,
    maskable: jax.Array,
    seeds: jax.Array,
    *,
    mask_token_id: int,
    vocab_size: int,
    probability: float = 0.15,
    continues: jax.Array | None = None,
) -> Masked:
    """Choose tokens to predict: round(probability · maskable tokens) of each row, at least 1 where there is any.

    With `continues`, bool (batch, length): whether a token continues the word before it, whole words up to that many
    tokens, see `choose_words`.

    Of the chosen 80 % become the mask token, 10 % a random token and 10 % stay. input_ids int32 and maskable bool are
    (batch, length), seeds uint32 (batch,). The choice depends on an example's seed and tokens, not on its padding.
    A fixed number per row, `most` = ceil(probability · length), keeps shapes static, so that only these positions
    need meet the vocabulary matrix.
    """
    length = input_ids.shape[1]
    most = max(1, -int(-probability * length // 1))
    u = uniform(fold_in(seeds, CHOOSE_SEED), (length,))
    number = maskable.sum(-1)
    wanted = jnp.where(number > 0, jnp.maximum(1.0, jnp.round(number.astype(jnp.float32) * probability)), 0.0)
    if continues is not None:
        maskable = choose_words(maskable, continues, u, wanted.astype(jnp.int32))
        wanted = maskable.sum(-1).astype(jnp.float32)
    _, positions = jax.lax.top_k(-jnp.where(maskable, u, 2.0), most)
    chosen = jnp.arange(most, dtype=jnp.float32)[None, :] < wanted[:, None]

    original = jnp.take_along_axis(input_ids, positions, axis=1)
    u = jnp.take_along_axis(uniform(fold_in(seeds, REPLACE_SEED), (length,)), positions, axis=1)
    token = uniform(fold_in(seeds, TOKEN_SEED), (length,)) * vocab_size
    token = jnp.take_along_axis(token.astype(input_ids.dtype), positions, axis=1)
    replaced = jnp.where(u < 0.8, mask_token_id, jnp.where(u < 0.9, token, original))
    rows = jnp.arange(len(input_ids))[:, None]
    masked = input_ids.at[rows, positions].set(jnp.where(chosen, replaced, original))
    return Masked(masked, positions, jnp.where(chosen, original, NO_LABEL))


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy of the masked tokens, masked anew at every step; also the metric `masked_lm_accuracy`.

    special_ids, and the template of a cloze, are never masked. Without seeds (evaluation) the masks are those of a fixed seed
    an example; with `static` they are in training too, so that an example always has the same ones (dropout still changes).
    whole_word: mask whole words, which `continuations` tells: a byte for every id of the vocabulary, not 0 where the
    token continues the word before it, see `wordpiece_continuations`. (Bytes, since their hash is kept: an objective is
    hashed at every step.)
    """

    reads_vocabulary: ClassVar[bool] = True

    model: Model
    mask_token_id: int
    special_ids: tuple[int, ...]
    probability: float = 0.15
    whole_word: bool = False
    static: bool = False
    continuations: bytes = b""

    def __post_init__(self) -> None:
        if self.whole_word and len(self.continuations) != self.model.config.vocab_size:
            raise ValueError(
                f"whole_word needs continuations for {self.model.config.vocab_size} ids, not {len(self.continuations)}."
            )

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        losses, right, weights = self.by_token(params, batch, seeds)
        return (losses.sum(), weights.sum()), {"masked_lm_accuracy": (right.sum(), weights.sum())}

    def by_row(self, params: Params, batch: Batch, seeds: jax.Array | None) -> jax.Array:
        """Of each row the nats of its masked tokens, how many were the likeliest, how many there are: float32 (batch, 3)."""
        return jnp.stack([value.sum(-1) for value in self.by_token(params, batch, seeds)], axis=-1)

    def by_token(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of each masked token its nats, whether it was the likeliest, and its weight: float32 (batch, most).

        Apart: of arrays in one stack XLA would not see that the weights alone need no forward pass.
        """
        continues = None
        if self.whole_word:
            continues = jnp.asarray(np.frombuffer(self.continuations, np.uint8) > 0)[batch["input_ids"]]
        masked = mask_tokens(
            batch["input_ids"],
            content(batch, self.special_ids, self.model.template),
            fixed_seeds(batch) if seeds is None or self.static else seeds,
            mask_token_id=self.mask_token_id,
            vocab_size=self.model.config.vocab_size,
            probability=self.probability,
            continues=continues,
        )
        module = self.model.bind(params)
        hidden = module.hidden_states(
            {**batch, "input_ids": masked.input_ids},
            seeds=None if seeds is None else fold_in(seeds, MODEL_SEED),
            frozen=self.model.frozen,
        )
        logits = module.vocabulary_logits(jnp.take_along_axis(hidden[-1], masked.positions[..., None], axis=1))
        losses, weights = cross_entropy(logits, masked.labels)
        right = weights * (logits.argmax(-1) == masked.labels).astype(jnp.float32)
        return losses, right, weights
