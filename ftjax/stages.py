"""What trains when: a run's stages, the low-rank matrices they ask for, and what their state takes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Sequence

import jax
import optax

from ftjax.config import Parameters, TrainConfig
from ftjax.errors import InputError, did_you_mean
from ftjax.models import LORA, Lora, Model, with_lora
from ftjax.objectives import Objective
from ftjax.optimizer import scheduled
from ftjax.partition import Labels, Treatments, count, labels_of, lora_part, split, treat, without_lora
from ftjax.pretrained.load import Pretrained, add_lora, in_4bit, merge
from ftjax.stacked import stack_of, stacked_shapes
from ftjax.step import kept_in


@dataclasses.dataclass(frozen=True)
class Stage:
    """What trains from a step on, and everything that follows from it. Without --unfreeze a run has one stage.

    treatments: of every parameter, also where layers are stacked. model: with dropout off where nothing trains. prefix:
    whether its first layers are frozen and their output is all that the objective reads of them, so that they need not be
    part of the step.
    """

    from_step: int
    spec: str
    treatments: Treatments
    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    prefix: bool

    @property
    def labels(self) -> Labels:
        """Label of every array of the state: of every parameter, or of the stack that it is in (see `ftjax.stacked`)."""
        return {stack_of(name, self.model.stacks): label for name, label in labels_of(self.treatments).items()}


def new_heads(pretrained: Pretrained) -> list[str]:
    """Parameters that the checkpoint did not have and that train whatever is asked for; low-rank matrices change nothing."""
    return [name for name in pretrained.new if not name.endswith(LORA)]


def stages_of(
    config: TrainConfig, pretrained: Pretrained, objective: Callable[[Model], Objective], steps_per_epoch: int
) -> tuple[Stage, ...]:
    """The stages of a run. Each trains what the one before it did, with the same treatment, and more."""
    names, layers = pretrained.model.shapes, pretrained.model.config.num_hidden_layers
    found: list[tuple[int, str, Treatments]] = []
    known: Treatments = {}
    for epoch, spec in config.stages:
        step = epoch * steps_per_epoch
        chosen = treat(names, spec, layers=layers, always=new_heads(pretrained), layer_decay=config.layer_decay)
        for name, before in known.items():
            now = dataclasses.replace(chosen[name], from_step=before.from_step)
            if now != before:
                what = "trains it otherwise" if now.trained else "freezes it again"
                raise InputError(f"--unfreeze {epoch}={spec}: {name} trains already and this {what}; stages may only add.")
            chosen[name] = now
        if found and set(known) == {name for name, treatment in chosen.items() if treatment.trained}:
            raise InputError(f"--unfreeze {epoch}={spec}: trains nothing that did not train before.")
        for name, treatment in chosen.items():
            if treatment.trained and name not in known:
                known[name] = chosen[name] = dataclasses.replace(treatment, from_step=step)
        found.append((step, spec, chosen))
    # Layers are stacked only if they are treated alike in every stage: stacks, and the moments with them, last the whole run
    in_all = {name: tuple(chosen[name] for _, _, chosen in found) for name in names}
    stages: list[Stage] = []
    for step, spec, chosen in found:
        trained = {name: treatment for name, treatment in chosen.items() if treatment.trained}
        model = pretrained.model if config.frozen_dropout else pretrained.model.freeze(trained)
        model = dataclasses.replace(model, remat=config.remat).looped(in_all)
        terms = objective(model)
        optimizer = scheduled(
            tuple({stack_of(name, model.stacks): treatment for name, treatment in trained.items()}.items()),
            optimizer=config.optimizer,
            moment_dtype=config.moment_dtype,
            steps=config.epochs * steps_per_epoch,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            weight_decay=config.weight_decay,
            max_gradient_norm=config.max_gradient_norm or None,
        )
        stays = model.prefix_layers > 0 and not config.packing  # the output of frozen layers, row by row
        prefix = stays and all(getattr(term.loss, "takes_prefix", False) for term in terms)
        stages.append(Stage(step, spec, chosen, model, terms, optimizer, prefix))
    return tuple(stages)


def adapt(pretrained: Pretrained, specs: Sequence[str], config: TrainConfig | Parameters, *, seed: int) -> Pretrained:
    """The model with what --train-parameters and --unfreeze add to it or let it do without.

    lora:R puts low-rank matrices beside the kernels that --lora-targets names and that stay frozen; those of an adapter go on
    training in its own shape, or are merged where no spec asks for any. --base-bits 4 keeps the kernels in 4 bits that stay
    frozen in every stage. Raises InputError for targets that match nothing, and for what does not go together.
    """
    ranks = {rank for spec in specs if (rank := lora_part(spec)) is not None}
    if len(ranks) > 1:
        raise InputError("--unfreeze: the stages give lora two ranks; give one.")
    if not ranks and (config.dora or config.lora_dropout):
        flag = "--dora" if config.dora else f"--lora-dropout {config.lora_dropout:g}"
        raise InputError(f"{flag}: needs low-rank matrices; train some with --train-parameters lora:R.")
    names, layers = list(pretrained.model.shapes), pretrained.model.config.num_hidden_layers
    trained = set().union(*(without_lora(spec, names, layers=layers) for spec in specs))
    dense = layer_kernels(names)
    if pretrained.model.lora is not None:
        pretrained = (
            _go_on(pretrained, trained, config) if ranks == {pretrained.model.lora.rank} else _merged(pretrained, ranks)
        )
    frozen = tuple(name.removesuffix(".kernel") for name in dense if name not in trained)
    if config.base_bits:
        if not frozen:
            raise InputError(
                f"--base-bits {config.base_bits}: every kernel of the layers trains, and only frozen ones can be rounded."
            )
        pretrained = in_4bit(pretrained, frozen)
    if not ranks or pretrained.model.lora is not None:
        return pretrained
    try:
        wanted = re.compile(rf"(encoder|decoder)\.layers\.\d+\.({config.lora_targets})")
    except re.error as error:
        raise InputError(f"--lora-targets {config.lora_targets}: not a regular expression ({error}).") from None
    matched = [name for name in dense if wanted.fullmatch(name.removesuffix(".kernel"))]
    modules = tuple(name for name in frozen if wanted.fullmatch(name))
    if not modules:
        why = "match only layers that train themselves" if matched else "match no dense layer"
        near = did_you_mean(config.lora_targets, {name.removesuffix(".kernel").split(".", 3)[-1] for name in dense})
        raise InputError(f"--lora-targets {config.lora_targets}: {why}.{'' if matched else near}")
    lora = Lora(ranks.pop(), config.lora_alpha, modules, config.lora_dropout, config.dora)
    return add_lora(pretrained, lora, seed=seed)


def layer_kernels(names: Iterable[str]) -> list[str]:
    """Of names of parameters those of kernels within layers."""
    return [name for name in names if re.match(r"(encoder|decoder)\.layers\.", name) and name.endswith(".kernel")]


def _go_on(pretrained: Pretrained, trained: Collection[str], config: TrainConfig | Parameters) -> Pretrained:
    """The model whose adapter trains further, with this run's dropout."""
    lora = pretrained.model.lora
    assert lora is not None
    if config.dora and not lora.dora:
        raise InputError("--dora: the adapter has no magnitudes; go on without, or without --adapter.")
    if both := [name for name in lora.modules if f"{name}.kernel" in trained]:
        raise InputError(f"--train-parameters: trains {both[0]}.kernel, beside which the adapter has low-rank matrices.")
    lora = dataclasses.replace(lora, dropout=config.lora_dropout)
    return dataclasses.replace(pretrained, model=with_lora(pretrained.model, lora))


def _merged(pretrained: Pretrained, ranks: Collection[int]) -> Pretrained:
    """The model with its adapter in the kernels. InputError where new matrices are asked for besides."""
    if ranks and (lora := pretrained.model.lora) is not None:
        raise InputError(
            f"--train-parameters: lora:{min(ranks)} beside an adapter of rank {lora.rank}; go on with it by lora:{lora.rank}."
        )
    return merge(pretrained)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What training keeps, besides activations: parameters (numbers) and bytes."""

    trained: int
    frozen: int
    parameters_bytes: int
    gradients_bytes: int
    moments_bytes: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.parameters_bytes + self.gradients_bytes + self.moments_bytes

    def line(self, spec: str) -> str:
        """For the log."""
        return (
            f"{self.trained:,} parameters, {self.frozen:,} frozen ({spec}). The state takes "
            f"{gigabytes(self.parameters_bytes + self.moments_bytes)}: {gigabytes(self.parameters_bytes)} parameters, "
            f"{gigabytes(self.moments_bytes)} moments; gradients {gigabytes(self.gradients_bytes)} more."
        )


def memory(model: Model, labels: Labels, optimizer: optax.GradientTransformation | None = None) -> Memory:
    """The memory of a state: what trains in float32 with a gradient and moments, frozen matrices as they are kept.

    labels: of the state's arrays. optimizer: None is AdamW, with two moments in float32.
    """
    trainable, frozen = split(stacked_shapes(model.shapes, model.stacks), labels)
    precision = dict(model.heads)["precision"]
    kept = sum(value.size * kept_in(name, value, precision).itemsize for name, value in frozen.items())
    trained = count(trainable)
    moments = 8 * trained
    if optimizer is not None:
        moments = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, trainable)))
    return Memory(trained, count(frozen), 4 * trained + kept, 4 * trained, moments)


def gigabytes(number: int) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.2f} GB"
