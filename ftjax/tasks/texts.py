"""What tasks share that learn from texts alone: a row is its own label."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ftjax.data.files import Rows, read_file
from ftjax.data.parts import Part
from ftjax.errors import InputError
from ftjax.tasks.task import Task


class TextTask(Task):
    """Every row has a label, itself. `checked` is not asked about rows that are only to be predicted for."""

    @classmethod
    def of(cls, settings: Any) -> Self:
        if getattr(settings, "method", "") == "self-supervised":
            raise InputError(f"--task {cls.name} needs no labels as it is; take --method full or partial.")
        return cls()

    def columns(self, settings: Any, *, labels: bool = True) -> dict[str, str | None]:
        return super().columns(settings, labels=False)

    def read_file(
        self, path: Path, settings: Any, *, labels: bool = True, require_labels: bool = False, part: Part | None = None
    ) -> Rows:
        if labels:
            return super().read_file(path, settings, part=part)
        columns: dict[str, Any] = self.columns(settings)
        return read_file(path, **columns, reader=self.reader, part=part)

    def read_dataset(self, settings: Any, split: str, *, require_labels: bool = False, part: Part | None = None) -> Rows:
        return super().read_dataset(settings, split, part=part)

    def asked(self, texts: Sequence[str]) -> Rows:
        return Rows(list(texts), None, None, "the texts given")

    def checked(self, rows: Rows) -> Rows:
        return dataclasses.replace(rows, labels=rows.texts)
