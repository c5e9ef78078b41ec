"""How likely a decoder finds given continuations of prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.batches import choose_buckets, plan_epoch
from ftjax.errors import InputError
from ftjax.generate import pad_left
from ftjax.models import Model, Params
from ftjax.step import kept_in


def continuation_logprobs(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
) -> list[np.ndarray]:
    """log p(token | prompt, tokens before it) of the tokens of every continuation after every prompt.

    model: a decoder with the head `causal_lm`. prompts, continuations: token ids, at least one each. An array for every
    continuation comes back, float32 (prompts, its tokens), in nats; sum it over the tokens for the likelihood of the whole.
    A prompt is run once, however many continuations there are. Raises InputError for one that leaves no room for them.
    """
    longest = max(map(len, continuations))
    if min(*map(len, prompts), *map(len, continuations)) < 1:
        raise ValueError("A prompt or continuation has no token.")
    positions = model.config.max_position_embeddings
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) + longest > positions:
            raise InputError(
                f"Prompt {number} has {len(prompt)} tokens; with {longest} more they exceed the model's {positions} positions."
            )
    found = [np.zeros((len(prompts), len(continuation)), np.float32) for continuation in continuations]
    begin, go_on = _programs(model)
    precision = dict(model.heads)["precision"]
    params = {name: value.astype(kept_in(name, value, precision)) for name, value in params.items()}  # once, not a batch
    lengths = np.array([len(prompt) for prompt in prompts])
    for length, numbers in plan_epoch(lengths, choose_buckets(lengths), batch_size, seed=None):
        rows = numbers.tolist()
        filled = rows + rows[:1] * (batch_size - len(rows))
        ids, mask = pad_left([prompts[row] for row in filled], length)
        cache, first = begin(params, ids, mask, slots=length + longest)
        for number, continuation in enumerate(continuations):
            tokens = np.zeros(longest, np.int32)
            tokens[: len(continuation)] = continuation
            values = np.asarray(go_on(params, cache, first, tokens))
            found[number][rows] = values[: len(rows), : len(continuation)]
    return found


@functools.lru_cache(maxsize=4)
def _programs(model: Model) -> tuple[Callable, Callable]:
    """(prompts -> a cache and the log-probabilities of the next token; those, and tokens -> the tokens' log-probabilities)."""

    def log_probabilities(hidden: jax.Array, module: object) -> jax.Array:
        return jax.nn.log_softmax(module.vocabulary_logits(hidden), axis=-1)  # type: ignore[attr-defined]

    @functools.partial(jax.jit, static_argnames="slots")
    def begin(params: Params, ids: jax.Array, mask: jax.Array, *, slots: int) -> tuple:
        module = model.bind(params)
        hidden, cache = module.body.extend(module.body.empty_cache(len(ids), slots), ids, mask)
        return cache, log_probabilities(hidden[:, -1], module)

    @jax.jit
    def go_on(params: Params, cache: tuple, first: jax.Array, tokens: jax.Array) -> jax.Array:
        rows = first.shape[0]
        told = first[:, tokens[0]][:, None]
        if len(tokens) == 1:
            return told
        module = model.bind(params)
        before = jnp.broadcast_to(tokens[None, :-1], (rows, len(tokens) - 1))
        hidden, _ = module.body.extend(cache, before, jnp.ones_like(before))
        targets = jnp.broadcast_to(tokens[None, 1:, None], (rows, len(tokens) - 1, 1))
        rest = jnp.take_along_axis(log_probabilities(hidden, module), targets, axis=-1)[..., 0]
        return jnp.concatenate([told, rest], axis=1)

    return begin, go_on
