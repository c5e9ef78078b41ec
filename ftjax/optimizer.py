"""AdamW or Adafactor with clipping, warm-up and decay, per label."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftjax.partition import Treatment, Treatments
from ftjax.stacked import is_stack

Schedule = Literal["linear", "cosine", "constant"]
Rule = Callable[[float | optax.Schedule, float], optax.GradientTransformation]
"""(learning rate, weight decay) -> the update rule of parameters that are treated alike."""


def learning_rate_schedule(peak: float, *, steps: int, warmup_steps: int = 0, schedule: Schedule = "linear") -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then linear or cosine decay to 0 at `steps`, or none.

    Without warm-up the first step has the peak rate and the last one peak/steps, as in transformers' schedules.
    """
    remaining = max(1, steps - warmup_steps)
    match schedule:
        case "linear":
            after = optax.linear_schedule(peak, 0.0, remaining)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, remaining)
        case "constant":
            after = optax.constant_schedule(peak)
    if warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def decay_labels(names: Iterable[str]) -> dict[str, str]:
    """The optax label tree of a plain run: "decay" or "no_decay" (biases, norms, as is usual since BERT, and magnitudes)."""
    return {name: "no_decay" if name.endswith((".bias", ".scale", ".lora_magnitude")) else "decay" for name in names}


def adamw(
    names: Iterable[str] | Treatments,
    learning_rate: float | optax.Schedule,
    *,
    weight_decay: float = 0.01,
    max_gradient_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    moment_dtype: str = "float32",
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019) for the parameters named: the same update as `torch.optim.AdamW`.

    moment_dtype: of the first moment. The second stays float32: bfloat16 would lose its steps of a thousandth.
    The other arguments: see `by_treatment`.
    """

    def rule(rate: float | optax.Schedule, decay: float) -> optax.GradientTransformation:
        return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=decay, mu_dtype=moment_dtype)

    return by_treatment(names, learning_rate, rule, weight_decay=weight_decay, max_gradient_norm=max_gradient_norm)


def adafactor(
    names: Iterable[str] | Treatments,
    learning_rate: float | optax.Schedule,
    *,
    weight_decay: float = 0.01,
    max_gradient_norm: float | None = 1.0,
    min_dim_size_to_factor: int = 128,
) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern, 2018, https://arxiv.org/abs/1804.04235): of a matrix's second moment only means of its
    rows and columns are kept, and no first moment.

    As in section 8 of the paper updates are clipped to root mean square 1, but learning rates are absolute and weight decay
    is decoupled, so that both mean what they mean to AdamW. Smaller matrices keep their second moment whole. See
    `by_treatment` for the other arguments.
    """

    names = names if isinstance(names, Mapping) else tuple(names)
    factored = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=min_dim_size_to_factor), optax.clip_by_block_rms(1.0)
    )
    factored = each_member(factored) if any(map(is_stack, names)) else factored

    def rule(rate: float | optax.Schedule, decay: float) -> optax.GradientTransformation:
        return optax.chain(factored, optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate))

    return by_treatment(names, learning_rate, rule, weight_decay=weight_decay, max_gradient_norm=max_gradient_norm)


def each_member(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """A rule that does to every layer's part of a stack (see `ftjax.stacked`) what it would do to that parameter alone.

    Its state is the rule's of what is not stacked, and one for each stack.
    """

    def apart(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """(what is not stacked or has another label, stacks)."""
        stacks = {name: value for name, value in tree.items() if is_stack(name) and jax.tree.leaves(value)}
        return {name: value for name, value in tree.items() if name not in stacks}, stacks

    def init(params: optax.Params) -> optax.OptState:
        single, stacks = apart(params)
        return rule.init(single), {name: jax.vmap(rule.init)(value) for name, value in stacks.items()}

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        (single, stacks), (values, stacked_values), (first, others) = apart(updates), apart(params), state
        new, first = rule.update(single, first, values)
        found = {name: jax.vmap(rule.update)(stacks[name], others[name], stacked_values[name]) for name in stacks}
        new |= {name: update for name, (update, _) in found.items()}
        return new, (first, {name: state for name, (_, state) in found.items()})

    return optax.GradientTransformation(init, update)


def by_treatment(
    names: Iterable[str] | Treatments,
    learning_rate: float | optax.Schedule,
    rule: Rule,
    *,
    weight_decay: float,
    max_gradient_norm: float | None,
) -> optax.GradientTransformation:
    """An update rule for the parameters named, with the learning rate and weight decay of each.

    names: of the trainable parameters; or their treatments, which may multiply the learning rate, set a weight decay,
        and say from which step on a parameter trains. Parameters treated alike share an optax label, with moments and
        a count of its own: one that starts later gets Adam's bias correction from its own first step, and the
        learning rate of the run's step.
    Gradients are first scaled so that their global norm is at most `max_gradient_norm` (None: not).
    """
    plain = Treatment(trained=True)
    treatments = dict(names) if isinstance(names, Mapping) else {}
    labels, groups = decay_labels(names), dict[str, optax.GradientTransformation]()
    for name, kind in labels.items():
        treatment = treatments.get(name, plain)
        if not isinstance(treatment, Treatment):  # a dictionary of arrays stands for its names
            treatment = plain
        decay = (weight_decay if kind == "decay" else 0.0) if treatment.weight_decay is None else treatment.weight_decay
        if treatment != plain:
            labels[name] = f"learning rate x {treatment.learning_rate:g}, weight decay {decay:g}, from {treatment.from_step}"
        groups[labels[name]] = rule(rate_of(learning_rate, treatment), decay)
    by_label = optax.partition(groups, labels)
    if max_gradient_norm is None:
        return by_label
    return optax.chain(clip(max_gradient_norm), by_label)


def clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` that can be told the norm: a device with a part of the gradients does not know it.

    `gradient_norm` of `update` is that of all gradients (see `ftjax.zero`); None: these are all.
    """

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        gradient_norm: jax.Array | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        norm = optax.tree.norm(updates) if gradient_norm is None else gradient_norm
        scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@functools.lru_cache(maxsize=64)
def scheduled(
    treatments: tuple[tuple[str, Treatment], ...],
    *,
    optimizer: Literal["adamw", "adafactor"],
    moment_dtype: str,
    steps: int,
    warmup_steps: int,
    schedule: Schedule,
    weight_decay: float,
    max_gradient_norm: float | None,
) -> optax.GradientTransformation:
    """`adamw` or `adafactor` with a peak learning rate in its state, which is 1 until `with_learning_rate` sets it.

    The same settings give the same object, so that runs which differ in learning rate or seed can share their programs.
    """
    rates = learning_rate_schedule(1.0, steps=steps, warmup_steps=warmup_steps, schedule=schedule)
    make = functools.partial(adamw, moment_dtype=moment_dtype) if optimizer == "adamw" else adafactor
    plain = make(dict(treatments), rates, weight_decay=weight_decay, max_gradient_norm=max_gradient_norm)
    return optax.chain(plain, times_learning_rate())


class LearningRate(NamedTuple):
    """State of `times_learning_rate`: float32 ()."""

    learning_rate: jax.Array


def times_learning_rate() -> optax.GradientTransformation:
    """Multiplies updates by a number of the state: they are proportional to the learning rate, weight decay and all."""

    def update(
        updates: optax.Updates, state: LearningRate, params: optax.Params | None = None
    ) -> tuple[optax.Updates, LearningRate]:
        return jax.tree.map(lambda u: u * state.learning_rate, updates), state

    return optax.GradientTransformation(lambda params: LearningRate(jnp.ones(())), update)


def with_learning_rate(state: optax.OptState, learning_rate: float) -> optax.OptState:
    """The state of a `scheduled` optimizer with this peak learning rate."""
    plain, _ = state
    return plain, LearningRate(jnp.float32(learning_rate))


def rate_of(learning_rate: float | optax.Schedule, treatment: Treatment) -> float | optax.Schedule:
    """A treatment's own learning rate, as a function of how often its parameters have been updated."""
    if not callable(learning_rate):
        return treatment.learning_rate * learning_rate
    if treatment.learning_rate == 1.0 and not treatment.from_step:
        return learning_rate
    return lambda count: treatment.learning_rate * learning_rate(count + treatment.from_step)


def carry_over(old: optax.OptState, new: optax.OptState) -> optax.OptState:
    """The freshly initialised `new`, with what `old` already knew: moments and counts of parameters that trained before."""
    known = dict(jax.tree_util.tree_flatten_with_path(old)[0])
    leaves, structure = jax.tree_util.tree_flatten_with_path(new)
    return jax.tree.unflatten(structure, [known.get(path, leaf) for path, leaf in leaves])
