"""The training step: one pure function for all three methods.

What differs between them is data of the state: which parameters are trainable, and the terms of the objective.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftjax import zero
from ftjax.models import Params
from ftjax.objectives import Average, Batch, Objective, average, measure
from ftjax.objectives.teacher import PREFIX
from ftjax.partition import Labels, split
from ftjax.sharding import FSDP
from ftjax.stacked import is_stack

Metrics = dict[str, Average]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "key", "trainable", "frozen", "optimizer_state", "teacher"],
    meta_fields=["objective", "optimizer", "microbatches", "unrolled", "teacher_decay", "skip_nonfinite"],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes, as one pytree; the last six fields are static.

    step: int32 scalar, how many updates have been made. key: the run's typed PRNG key; never changes, steps fold in.
    trainable, frozen: disjoint dictionaries, dotted name -> array; what trains is float32. optimizer_state: of the
    trainable ones only. teacher: averages over the steps of what trains, as `teacher.NAME` (see
    `ftjax.objectives.teacher`), or empty.
    objective, optimizer: what is minimised and how. microbatches: into how many parts a batch is cut (gradient
    accumulation); the result is that of the whole batch. unrolled: they are not compiled as a loop. teacher_decay: what an
    average keeps of itself in a step. skip_nonfinite: whether a step whose loss or gradient is not finite changes nothing but
    the count of steps.
    """

    step: jax.Array
    key: jax.Array
    trainable: Params
    frozen: Params
    optimizer_state: optax.OptState
    teacher: Params
    objective: Objective
    optimizer: optax.GradientTransformation
    microbatches: int = 1
    unrolled: bool = False
    teacher_decay: float = 0.0
    skip_nonfinite: bool = False

    @property
    def params(self) -> Params:
        """All parameters, trainable and frozen."""
        return {**self.frozen, **self.trainable}


def create_state(
    params: Params,
    labels: Labels,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    microbatches: int = 1,
    unrolled: bool = False,
    precision: str = "float32",
    teacher_decay: float = 0.0,
    skip_nonfinite: bool = False,
) -> TrainState:
    """The state before the first step. The arrays are copied: steps may donate the state and `params` stay valid.

    precision: of the model's dot products. Frozen matrices are kept in it, since nothing reads them in more; frozen
    vectors (biases, norms) take part in sums and stay float32, as does all that trains. Kernels in 4 bits stay so.
    teacher_decay: above 0, a mean teacher is kept, which starts as the student.
    """
    trainable, frozen = split(dict(params), labels)
    trainable = {name: jnp.array(value, copy=True) for name, value in trainable.items()}
    frozen = {name: jnp.array(value, kept_in(name, value, precision), copy=True) for name, value in frozen.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(seed),
        trainable=trainable,
        frozen=frozen,
        optimizer_state=optimizer.init(trainable),
        teacher={PREFIX + name: jnp.array(value, copy=True) for name, value in trainable.items()} if teacher_decay else {},
        objective=objective,
        optimizer=optimizer,
        microbatches=microbatches,
        unrolled=unrolled,
        teacher_decay=teacher_decay,
        skip_nonfinite=skip_nonfinite,
    )


def kept_in(name: str, value: jax.Array | jax.ShapeDtypeStruct, precision: str) -> jnp.dtype:
    """The dtype that a frozen parameter, or a stack of them, is kept in."""
    matrix = value.ndim - is_stack(name) > 1 and jnp.issubdtype(value.dtype, jnp.floating)
    return jnp.dtype(precision) if matrix else value.dtype


def gradients(
    state: TrainState,
    batch: Batch,
    *,
    axes: tuple[str, ...] = (),
    part: str | None = None,
    cuts: zero.Cuts | None = None,
    dtype: str = "float32",
    reduce_dtype: str = "float32",
) -> tuple[Metrics, Params]:
    """(metrics, gradients of what trains), of the whole batch and without an update. Reads no optimizer state.

    batch: see `ftjax.objectives.Batch`; its size must be a multiple of `state.microbatches`.
    axes: of pmap or shard_map, over which rows of the batch are spread and sums go; under plain jit sums are global already.
    part, cuts: one of the axes, and which trainable parameters the state holds only this device's part of, cut over it, see
        `ftjax.zero`; their gradients are parts too. dtype: in which those are gathered; of the model's dot products.
        reduce_dtype: in which their gradients are summed over devices, once a step.
    metrics: each a (sum, weight) of float32 scalars: `loss`, every term as NAME_loss, the terms' own metrics,
        `gradient_norm` (before clipping). With `skip_nonfinite` also `skipped`, 1 or 0; a skipped step's other metrics have
        no weight.

    Gradients are exact for any split of the batch. With terms t, microbatches m and W_t = Σ_m weight_tm,
        ∇ Σ_t coefficient_t · Σ_m sum_tm / W_t = Σ_m ∇ Σ_t (coefficient_t / W_t) · sum_tm,
    so the weights are summed first (they depend on the batch alone, and XLA drops what they do not need), then each
    microbatch's gradient is added up already divided.
    """
    key = jax.random.fold_in(state.key, state.step)
    parts = microbatches(batch, state.microbatches)
    cuts = cuts or {}
    # Over fsdp the model gathers what it reads; else all is gathered here, once, but for tables that are looked up in parts.
    apart = cuts if part == FSDP else {name: cuts[name] for name in looked_up(state.objective, cuts)}
    gathered = {name: at for name, at in cuts.items() if name not in apart}
    whole = functools.partial(zero.gather, axis_name=part, dtype=jnp.dtype(dtype))
    params = whole(state.trainable, gathered)
    fixed = {**state.frozen, **whole(state.teacher, {PREFIX + n: at for n, at in cuts.items() if part != FSDP})}

    def everywhere(tree: Any, over: tuple[str, ...] = axes) -> Any:
        return jax.lax.psum(tree, over) if over else tree

    def term_weights(part: Batch) -> dict[str, jax.Array]:
        losses, _ = measure(state.objective, {**fixed, **params}, part, key)
        return {name: weight for name, (_, weight) in losses.items()}

    # Of a batch in one piece the loss itself knows the weights; asking before would trace the model twice.
    at_once = state.microbatches == 1
    summed = {} if at_once else everywhere(jax.tree.map(lambda w: w.sum(0), jax.lax.map(term_weights, parts)))

    def loss(trainable: Params, part: Batch) -> tuple[jax.Array, Metrics]:
        losses, metrics = measure(state.objective, {**fixed, **trainable}, part, key)
        weights = everywhere({name: weight for name, (_, weight) in losses.items()}) if at_once else summed
        terms = ((t.coefficient_at(state.step), (losses[t.name][0], weights[t.name])) for t in state.objective)
        total = sum(coefficient * average(pair) for coefficient, pair in terms)
        return jnp.asarray(total), metrics | {f"{name}_loss": pair for name, pair in losses.items()}

    def measured(part: Batch) -> tuple[jax.Array, Metrics, Params]:
        (total, metrics), found = jax.value_and_grad(loss, has_aux=True)(params, part)
        return total, metrics, found

    def part_of(number: int | slice) -> Batch:
        return jax.tree.map(lambda x: x[number], parts)

    if at_once:
        sums = measured(part_of(0))
    else:
        # Where gradients are sent, the last microbatch is not in the loop: each is sent while others are still computed.
        looped = state.microbatches - 1 if gathered else state.microbatches
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measured, part_of(0)))
        sums, _ = jax.lax.scan(
            lambda sums, part: (jax.tree.map(jnp.add, sums, measured(part)), None),
            zeros,
            part_of(slice(looped)),
            unroll=looped if state.unrolled else 1,
        )
        if gathered:
            sums = jax.tree.map(jnp.add, sums, measured(part_of(-1)))
    total, metrics, found = sums
    summed_apart = everywhere({n: found.pop(n) for n in apart}, tuple(axis for axis in axes if axis != part))
    scattered = zero.scatter({n: found.pop(n) for n in gathered}, gathered, part, reduce_dtype)
    total, metrics, found = everywhere((total, metrics, found))
    found = found | scattered | summed_apart
    norm = zero.norm(found, cuts, part) if cuts else optax.tree.norm(found)
    metrics |= {"loss": (total, jnp.ones(())), "gradient_norm": (norm, jnp.ones(()))}
    return metrics, {name: found[name] for name in state.trainable}


def updated(state: TrainState, metrics: Metrics, found: Params) -> tuple[TrainState, Metrics]:
    """(state after an update, metrics) from what `gradients` gives. With `skip_nonfinite` there may be no update, see there."""
    norm = metrics["gradient_norm"][0]
    optimizer = optax.with_extra_args_support(state.optimizer)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers, which strict promotion refuses
        updates, optimizer_state = optimizer.update(found, state.optimizer_state, state.trainable, gradient_norm=norm)
    trainable = optax.apply_updates(state.trainable, updates)
    keep = state.teacher_decay
    teacher = {name: keep * mean + (1.0 - keep) * trainable[name.removeprefix(PREFIX)] for name, mean in state.teacher.items()}
    new = {"trainable": trainable, "optimizer_state": optimizer_state, "teacher": teacher}
    if state.skip_nonfinite:
        finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norm)
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, {n: getattr(state, n) for n in new})
        metrics = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), metrics)
        metrics |= {"skipped": (jnp.where(finite, 0.0, 1.0), jnp.ones(()))}
    return dataclasses.replace(state, step=state.step + 1, **new), metrics


def train_step(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One update. Pure: compile it with `jax.jit(train_step, donate_argnums=0)`, or see `ftjax.parallel`.

    axis_name: of `jax.pmap`, over which rows of the batch are spread. Metrics, and what a batch is: see `gradients`.
    """
    return updated(state, *gradients(state, batch, axes=() if axis_name is None else (axis_name,)))


def apart(step: Callable[..., Any]) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]:
    """A step with the frozen parameters apart (`state.frozen` is empty), so that, compiled, it neither donates nor returns
    them: those that the batch's `prefix` makes needless are then no argument of the program at all.
    """

    def run(state: TrainState, frozen: Params, batch: Batch, **options: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step(dataclasses.replace(state, frozen=frozen), batch, **options)
        return dataclasses.replace(new, frozen={}), metrics

    return run


def looked_up(objective: Objective, cuts: zero.Cuts) -> set[str]:
    """Cut parameters that the model can do with this device's part of: word embeddings, unless their matrix is read whole."""
    if any(
        getattr(term.loss, "reads_vocabulary", False) or getattr(getattr(term.loss, "model", None), "cloze", None)
        for term in objective
    ):
        return set()
    return {name for name, at in cuts.items() if name.endswith(".embeddings.word.embedding") and at == 1}


def microbatches(batch: Batch, number: int) -> Batch:
    """(batch, ...) arrays to (number, batch / number, ...): part i has rows i, i + number, ...

    Strided, so that a batch sharded over devices is cut within each device and no row moves.
    """
    return jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), batch)


def eval_step(state: TrainState, batch: Batch) -> Metrics:
    """The objective's losses and metrics on a batch, dropout off: `loss`, NAME_loss and the terms' own metrics."""
    losses, metrics = measure(state.objective, {**state.params, **state.teacher}, batch, None)
    return metrics | {f"{name}_loss": pair for name, pair in losses.items()}
