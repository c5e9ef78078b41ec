"""Whose predictions are the targets of `consistency` and `pseudo_label`: the student's own, a mean teacher's, or given ones.

A mean teacher (Tarvainen & Valpola, 2017, https://arxiv.org/abs/1703.01780) has an average of the student's parameters
over the steps. Parameters are one flat dictionary and a model takes from it what it knows, so the averages can ride
in it under names with a prefix: `teacher.encoder...`. Then a loss stays a function of (params, batch, seeds), the
averages are frozen parameters to the loss, and only what trains needs one. `ftjax.step` makes and updates them.

Predictions that another model has made of a row come with it, as `teacher_scores`: consistency is then distillation (Hinton
et al., 2015, https://arxiv.org/abs/1503.02531) to a student that may see another view of the row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import Batch
from ftjax.objectives.classification import class_logits

PREFIX = "teacher."


def teacher_params(params: Params) -> Params:
    """The student's parameters, with those in their place that have an average: names `teacher.NAME`."""
    student = {name: value for name, value in params.items() if not name.startswith(PREFIX)}
    return student | {name.removeprefix(PREFIX): value for name, value in params.items() if name.startswith(PREFIX)}


def teacher_logits(model: Model, params: Params, batch: Batch) -> jax.Array:
    """Class logits of the teacher, float32 (batch, classes): no gradient goes through them, dropout is off.

    Of probabilities that come with the batch they are the logarithms.
    """
    if "teacher_scores" in batch:
        return jnp.log(jnp.maximum(batch["teacher_scores"], jnp.finfo(jnp.float32).tiny))
    return jax.lax.stop_gradient(class_logits(model, teacher_params(params), batch, None))
