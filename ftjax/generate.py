"""Text from a decoder, or from an encoder and a decoder: a prompt is read at once, then one token comes at a time, with the
keys and values of all before it kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.tokenize import load_tokenizer
from ftjax.errors import InputError, refusing
from ftjax.models import SEQ2SEQ, Model, Params
from ftjax.models.decoder import Cache
from ftjax.models.t5 import T5, T5Config
from ftjax.objectives import Batch
from ftjax.pretrained import Pretrained, load_pretrained, merge
from ftjax.pretrained.adapter import locate
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.load import read_config
from ftjax.pretrained.tensors import read_json

SLOTS = 128  # caches are multiples of this long, so that few programs are compiled
FINISHED = -1  # in place of a token: the row's text has ended


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when a text ends.

    temperature: 0 takes the likeliest token; else logits are divided by it and one is drawn. top_p: only from the
    likeliest ones that together have this probability (Holtzman et al., 2019). seed: a prompt's text depends on it and on
    the prompt's number. stop: tokens that end a text; they are not part of it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[int, ...] = ()

    def check(self) -> None:
        """InputError for values that make no sense."""
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens}: must be at least 1.")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: must be 0 (the likeliest token) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: must be above 0 and at most 1.")


def bucket(length: int, smallest: int = 16) -> int:
    """The length that a prompt is padded to: a power of two, so that few programs are compiled."""
    return max(smallest, 1 << (length - 1).bit_length())


def pad_left(prompts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, int32 (prompts, length), each prompt at the end of its row."""
    ids = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def choose(logits: jax.Array, keys: jax.Array | None, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """The next token of every row, int32 (batch,), from float32 logits (batch, vocabulary).

    keys: typed keys (batch,), with which one is drawn; None takes the likeliest.
    """
    if keys is None:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / temperature
    ranked = jnp.sort(jax.nn.softmax(logits, axis=-1), axis=-1, descending=True)
    before = jnp.cumsum(ranked, axis=-1) - ranked  # the probability of all that are likelier
    least = jnp.where(before < top_p, ranked, 2.0).min(-1, keepdims=True)
    logits = jnp.where(jax.nn.softmax(logits, axis=-1) >= least, logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def drawn(logits: jax.Array, seeds: jax.Array | None, count: jax.Array, *how: jax.Array) -> jax.Array:
    """`choose`, with a key for each of a text's tokens."""
    keys = None if seeds is None else jax.vmap(lambda key: jax.random.fold_in(key, count))(seeds)
    return choose(logits, keys, *how)


@functools.lru_cache(maxsize=4)
def _programs(model: Model) -> tuple[Callable, Callable]:
    """(prompts -> first tokens and the cache, those -> next tokens and the cache), compiled once for every shape.

    seeds: a typed key a row, or None to take the likeliest token. count: how many tokens have been chosen before.
    """
    if isinstance(model.config, T5Config):
        return _seq2seq_programs(model, model.config)

    def next_tokens(module: Any, hidden: jax.Array, seeds: jax.Array | None, count: jax.Array, *how: jax.Array) -> jax.Array:
        return drawn(module.vocabulary_logits(hidden[:, -1]), seeds, count, *how)

    @functools.partial(jax.jit, static_argnames="slots")
    def begin(
        params: Params, ids: jax.Array, mask: jax.Array, seeds: Any, count: Any, *how: Any, slots: int
    ) -> tuple[jax.Array, Cache]:
        module = model.bind(params)
        hidden, cache = module.body.extend(module.body.empty_cache(len(ids), slots), ids, mask)
        return next_tokens(module, hidden, seeds, count, *how), cache

    @functools.partial(jax.jit, donate_argnames="cache")
    def go_on(params: Params, tokens: jax.Array, cache: Cache, seeds: Any, count: Any, *how: Any) -> tuple[jax.Array, Cache]:
        module = model.bind(params)
        hidden, cache = module.body.extend(cache, tokens[:, None], jnp.ones_like(tokens)[:, None])
        return next_tokens(module, hidden, seeds, count, *how), cache

    return begin, go_on


def _seq2seq_programs(model: Model, config: T5Config) -> tuple[Callable, Callable]:
    """The same where an encoder reads the prompt: the cache then has room for the new tokens alone."""

    @functools.partial(jax.jit, static_argnames="slots")
    def begin(
        params: Params, ids: jax.Array, mask: jax.Array, seeds: Any, count: Any, *how: Any, slots: int
    ) -> tuple[jax.Array, Any]:
        module = model.bind(params)
        cache = module.start(module.encode(ids, mask)[-1], mask, slots)
        logits, cache = module.step(jnp.full(len(ids), config.start_token_id, jnp.int32), cache)
        return drawn(logits, seeds, count, *how), cache

    @functools.partial(jax.jit, donate_argnames="cache")
    def go_on(params: Params, tokens: jax.Array, cache: Any, seeds: Any, count: Any, *how: Any) -> tuple[jax.Array, Any]:
        logits, cache = model.bind(params).step(tokens, cache)
        return drawn(logits, seeds, count, *how), cache

    return begin, go_on


def likeliest(module: T5, config: T5Config, batch: Batch, most: int) -> jax.Array:
    """What an encoder and a decoder write for every source, greedily: int32 (batch, most), FINISHED from a text's end on.

    The same as `generate`, for use inside a compiled function: the loop ends when all texts have.
    """
    stop = -1 if config.eos_token_id is None else config.eos_token_id
    ids = batch["input_ids"]
    cache = module.start(module.encode(ids, batch["attention_mask"])[-1], batch["attention_mask"], most)
    first = jnp.full(len(ids), config.start_token_id, jnp.int32)

    def go_on(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        count, tokens, going, written, cache = state
        logits, cache = module.step(tokens, cache)
        tokens = logits.argmax(-1).astype(jnp.int32)
        going &= tokens != stop
        written = written.at[:, count].set(jnp.where(going, tokens, FINISHED))
        return count + 1, tokens, going, written, cache

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        return (state[0] < most) & state[2].any()

    written = jnp.full((len(ids), most), FINISHED, jnp.int32)
    begin = (jnp.zeros((), jnp.int32), first, batch["example_ids"] >= 0, written, cache)
    return jax.lax.while_loop(unfinished, go_on, begin)[3]


def stream(
    model: Model, params: Params, prompts: Sequence[Sequence[int]], sampling: Sampling, *, first: int = 0
) -> Iterator[np.ndarray]:
    """The next token of every prompt, int32 (prompts,), again and again: FINISHED where a text has ended, until all have.

    model: a decoder with the head `causal_lm`, or an encoder and a decoder. prompts: token ids, at least one each. first: the
    number of the first one. A text also ends after `sampling.max_new_tokens` and at a decoder's last position. Raises
    InputError for a prompt that leaves none.
    """
    apart = isinstance(model.config, T5Config)  # the prompt takes no place of the new tokens'
    positions = model.config.max_position_embeddings
    for number, prompt in enumerate(prompts, first + 1):
        if not prompt:
            raise InputError(f"Prompt {number} is empty; give at least one token.")
        if len(prompt) >= positions and not apart:
            raise InputError(f"Prompt {number} has {len(prompt)} tokens, the model {positions} positions; shorten it.")
    most = sampling.max_new_tokens
    left = np.array([most if apart else min(most, positions - len(prompt)) for prompt in prompts])
    ids, mask = pad_left(prompts, bucket(max(map(len, prompts))))
    slots = -(-(most if apart else ids.shape[1] + most) // SLOTS) * SLOTS
    seeds = None
    if sampling.temperature:
        key = jax.random.key(sampling.seed)
        seeds = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(first, first + len(prompts)))
    how = (np.float32(sampling.temperature), np.float32(sampling.top_p))
    begin, go_on = _programs(model)
    tokens, cache = begin(params, ids, mask, seeds, np.int32(0), *how, slots=slots)
    going = np.ones(len(prompts), bool)
    for count in range(1, int(left.max()) + 1):
        going &= ~np.isin(np.asarray(tokens), sampling.stop)
        if not going.any():
            return
        yield np.where(going, np.asarray(tokens), FINISHED)
        going &= count < left
        if not going.any():
            return
        tokens, cache = go_on(params, tokens, cache, seeds, np.int32(count), *how)


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 8,
) -> list[list[int]]:
    """The new tokens of every prompt, see `stream`; `batch_size` prompts at a time."""
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        rows = list(prompts[start : start + batch_size])
        texts: list[list[int]] = [[] for _ in rows]
        filled = rows + rows[:1] * (min(batch_size, len(prompts)) - len(rows))  # one shape, one program
        for tokens in stream(model, params, filled, sampling, first=start):
            for text, token in zip(texts, tokens.tolist(), strict=False):
                if token != FINISHED:
                    text.append(token)
        found += texts
    return found


@dataclasses.dataclass(frozen=True)
class TextGenerator:
    """A model that writes and its tokenizer, loaded from a Hugging Face directory, a GGUF file or a hub id. stop: what ends a
    text.
    """

    pretrained: Pretrained
    tokenizer: Any
    stop: tuple[int, ...]

    @classmethod
    def load(cls, model: str | Path, *, adapter: str | Path | None = None, precision: str = "float32") -> TextGenerator:
        """Raises InputError for a model that does not predict the next token, or an adapter for another one."""
        model, adapter = locate(model, adapter)
        directory = model_directory(model)
        config, _, _ = read_config(directory)
        if not config.causal and type(config) not in SEQ2SEQ:
            raise InputError(f"{model}: {config.model_type} is no decoder, and only decoders continue text.")
        pretrained = merge(load_pretrained(model, adapter=adapter, labels=(), causal_lm=config.causal, precision=precision))
        if pretrained.new:
            raise InputError(f"{model}: has no head for the next token (lm_head.weight), so it cannot generate text.")
        params = {n: v.astype(precision) if v.ndim > 1 else v for n, v in pretrained.params.items()}  # once, not a token
        pretrained = dataclasses.replace(pretrained, params=params)
        tokenizer = load_tokenizer(directory)
        return cls(pretrained, tokenizer, stop_tokens(pretrained, tokenizer))

    def encode(self, text: str) -> list[int]:
        """A prompt's tokens, with what the tokenizer puts before every text."""
        with refusing(f"{self.pretrained.directory}: its tokenizer fails on the prompt"):
            return self.tokenizer(text)["input_ids"]

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The tokens of a conversation up to where the assistant speaks; InputError without a chat template."""
        if not self.tokenizer.chat_template:
            raise InputError(f"{self.pretrained.directory}: its tokenizer has no chat template; use ftjax generate.")
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is a program of the model's; it raises what it likes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.pretrained.directory}: its chat template failed ({reason}).") from None
        with refusing(f"{self.pretrained.directory}: its tokenizer fails on the prompt"):
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of new tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """One prompt's new tokens, each as soon as it is known."""
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *self.stop))
        for tokens in stream(self.pretrained.model, self.pretrained.params, [prompt], sampling):
            yield int(tokens[0])

    def generate(self, prompts: Sequence[str], sampling: Sampling, *, batch_size: int = 8) -> list[dict[str, Any]]:
        """For every prompt {"prompt", "text", "token_ids"}, the new ones alone."""
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *self.stop))
        encoded = [self.encode(prompt) for prompt in prompts]
        found = generate(self.pretrained.model, self.pretrained.params, encoded, sampling, batch_size=batch_size)
        return [
            {"prompt": prompt, "text": self.decode(tokens), "token_ids": tokens}
            for prompt, tokens in zip(prompts, found, strict=True)
        ]


def stop_tokens(pretrained: Pretrained, tokenizer: Any) -> tuple[int, ...]:
    """What ends a text: the tokenizer's end, and those that generation_config.json and config.json name."""
    settings = pretrained.directory / "generation_config.json"
    named = [pretrained.raw_config.get("eos_token_id"), tokenizer.eos_token_id]
    if settings.is_file():
        named.append(read_json(settings).get("eos_token_id"))
    numbers = [number for value in named for number in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(number for number in numbers if isinstance(number, int)))


def pieces(decode: Callable[[Sequence[int]], str], tokens: Iterable[int]) -> Iterator[str]:
    """Text as it grows, token by token; a character of several tokens comes when it is whole."""
    seen: list[int] = []
    said = ""
    for token in tokens:
        seen.append(token)
        text = decode(seen)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(said) :]
            said = text
    yield decode(seen)[len(said) :]
