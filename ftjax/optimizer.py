"""AdamW with clipping, warm-up and decay, per label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import optax

Schedule = Literal["linear", "cosine", "constant"]


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
    """The optax label tree: "decay" or "no_decay" (biases and norms, as is usual since BERT)."""
    return {name: "no_decay" if name.endswith((".bias", ".scale")) else "decay" for name in names}


def adamw(
    names: Iterable[str],
    learning_rate: float | optax.Schedule,
    *,
    weight_decay: float = 0.01,
    max_gradient_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019) for the parameters named: the same update as `torch.optim.AdamW`.

    Gradients are first scaled so that their global norm is at most `max_gradient_norm` (None: not).
    """

    def chain(decay: float) -> optax.GradientTransformation:
        return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=decay)

    by_label = optax.partition({"decay": chain(weight_decay), "no_decay": chain(0.0)}, decay_labels(names))
    if max_gradient_norm is None:
        return by_label
    return optax.chain(optax.clip_by_global_norm(max_gradient_norm), by_label)
