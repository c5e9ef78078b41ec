"""Conversations: what the assistant says is predicted from all before it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from ftjax.data.dialogue import MESSAGES, conversation, dialogue_table, encode_conversations, prompt, up_to_the_last_answer
from ftjax.data.files import Reader, Rows
from ftjax.data.tokenize import Examples
from ftjax.tasks.causal_lm import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Dialogue(LanguageModel):
    """A row is a conversation: messages with role and content, or turns of user and assistant."""

    name: ClassVar[str] = "dialogue"
    reader: ClassVar[Reader] = Reader(text_column=MESSAGES, table=dialogue_table, text=conversation)

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        return raw_config.get("ftjax_task") == cls.name

    def notes(self) -> dict[str, Any]:
        return {"ftjax_task": self.name}

    def checked(self, rows: Rows) -> Rows:
        texts = [up_to_the_last_answer(messages, rows.source, row) for row, messages in enumerate(rows.texts, start=1)]
        return super().checked(dataclasses.replace(rows, texts=texts))

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        return encode_conversations(rows.texts, tokenizer, max_length, rows.source)

    def prompts(self, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
        """Of a conversation that ends with an answer, what comes before that; a text alone is the user's."""
        asked = [[{"role": "user", "content": row}] if isinstance(row, str) else row for row in rows.texts]
        asked = [row[:-1] if len(row) > 1 and row[-1]["role"] == "assistant" else row for row in asked]
        return [prompt(row, tokenizer, f"{rows.source}: row {i}") for i, row in enumerate(asked, start=1)]


TASK = Dialogue
