"""What can be learnt, by name: a file a task, which is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftjax.tasks.task import Task

TASKS = (
    *("classification", "multi-label", "regression", "token-classification", "question-answering"),
    *("dialogue", "seq2seq", "masked-lm", "causal-lm"),
)
"""--task. The task `token-classification` is `TASK` of the module `token_classification`."""


def task_class(name: str) -> type[Task]:
    """The task of a name."""
    return importlib.import_module(f"ftjax.tasks.{name.replace('-', '_')}").TASK


def task_of_model(raw_config: dict[str, Any]) -> type[Task]:
    """The task that a model was trained for, as its config.json tells; classification where that says nothing."""
    classes = map(task_class, TASKS)
    return next((task for task in classes if task.trained(raw_config)), task_class(TASKS[0]))
