"""Conversations -> tokens, and which of them the assistant says: those are what a dialogue model learns.

What the assistant says, the chat template itself tells by `{% generation %}`; of a template without such marks, it is what
the template adds when the assistant's message is appended to the conversation before it (prefix difference).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ftjax.data.packing import Packed, documents
from ftjax.data.parts import Part
from ftjax.data.tables import Table, kind_of, load_table, one_line, shown
from ftjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]
MESSAGES, TURNS = "messages", "turns"
ROLES = ("system", "user", "assistant")  # what a template may be expected to know without naming it
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def dialogue_table(path: Path, part: Part | None = None) -> Table:
    """A file whose conversations are in the column `messages`, or in one called `turns`, which then is called that too."""
    table = load_table(path, part)
    if table.plain:
        raise InputError(f"{shown(path)}: plain text says not who speaks; give .jsonl with a column {MESSAGES} or {TURNS}.")
    if MESSAGES in table.names or TURNS not in table.names:
        return table
    names = [MESSAGES if name == TURNS else name for name in table.names]
    return dataclasses.replace(table, names=names, cells=lambda name: table.cells(TURNS if name == MESSAGES else name))


def conversation(value: Any, source: str, row: int) -> list[Message]:
    """A cell as messages {"role", "content"}: a list of those, or of texts that user and assistant say in turn.

    Raises InputError, naming the row, for anything else.
    """
    where = f"{source}: row {row}"
    if not isinstance(value, list) or not value:
        what = "is an empty list" if value == [] else f"is {kind_of(value)}"
        raise InputError(f"{where} {what}, not a list of messages (role and content) or of turns (texts).")
    if all(isinstance(each, str) for each in value):
        value = [{"role": ROLES[1 + i % 2], "content": text} for i, text in enumerate(value)]
    return [message(each, f"{where}, message {i}") for i, each in enumerate(value, start=1)]


def up_to_the_last_answer(messages: list[Message], source: str, row: int) -> list[Message]:
    """The messages without those that follow the assistant's last one; InputError where it says nothing."""
    last = max((i for i, each in enumerate(messages) if each["role"] == "assistant"), default=None)
    if last is None:
        raise InputError(f"{source}: row {row}: has no turn of the assistant, so there is nothing to learn; leave it out.")
    return messages[: last + 1]


def message(value: Any, where: str) -> Message:
    """A message as {"role", "content"}; InputError unless both are texts."""
    if not isinstance(value, dict):
        raise InputError(f'{where} is {kind_of(value)}, not an object such as {{"role": "user", "content": "..."}}.')
    for name in ("role", "content"):
        if not isinstance(value.get(name), str):
            raise InputError(f"{where}: its {name} is {kind_of(value.get(name))}, not a string.")
    try:
        value["content"].encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: its content is not valid Unicode at character {error.start}.") from None
    return {"role": value["role"], "content": value["content"]}


def encode_conversations(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerFast, max_length: int, source: str
) -> Packed:
    """Conversations as documents of at most max_length tokens, longer ones cut, whose labels are what the assistant says.

    The token that ends an assistant's turn is always learnt, and nothing after it. Raises InputError, naming the row, where
    the template fails or drops a message, where nothing or everything would be learnt, and where what comes before the
    assistant's first word fills max_length.
    """
    need_template(tokenizer, source)
    tokens: list[list[int]] = []
    masks: list[list[int]] = []
    rows: list[int] = []
    truncated = 0
    for row, messages in enumerate(conversations, start=1):
        where = f"{source}: row {row}"
        check_roles(messages, tokenizer, where)
        for ids, mask in encode_one(messages, tokenizer, where):
            if not any(mask):
                raise InputError(f"{where}: the chat template marks no token as the assistant's.")
            if all(mask):
                raise InputError(f"{where}: the chat template marks every token as the assistant's, and none as the user's.")
            before = mask.index(1)
            if before >= max_length:
                raise InputError(
                    f"{where}: {before} tokens come before the assistant's first word, and a row holds {max_length}; "
                    "shorten it, or raise --max-length."
                )
            truncated += len(ids) > max_length
            tokens.append(ids[:max_length])
            masks.append(mask[:max_length])
            rows.append(row - 1)
    found = documents(tokens, masks, max_length, truncated=truncated, empty=0)
    return dataclasses.replace(found, rows=np.array(rows)[found.rows])


def prompt(messages: list[Message], tokenizer: PreTrainedTokenizerFast, where: str) -> list[int]:
    """The tokens of a conversation up to where the assistant answers its last message."""
    need_template(tokenizer, where)
    check_roles(messages, tokenizer, where)
    return tokenizer(render(messages, tokenizer, where, add_generation_prompt=True), add_special_tokens=False)["input_ids"]


def need_template(tokenizer: PreTrainedTokenizerFast, source: str) -> None:
    """InputError where the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{source}: the tokenizer has no chat template, which says how a conversation is written; take a model tuned for "
            "chat, or put chat_template.jinja beside its tokenizer."
        )


def check_roles(messages: list[Message], tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    """InputError for a role that the template does not name and is none of the usual ones: many would print any."""
    template = str(tokenizer.chat_template)
    for each in messages:
        role = each["role"]
        if role not in ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
            raise InputError(f"{where}: the role {role!r} is unknown to the chat template; usual are {', '.join(ROLES)}.")


def encode_one(
    messages: list[Message], tokenizer: PreTrainedTokenizerFast, where: str
) -> Iterator[tuple[list[int], list[int]]]:
    """(token ids, 1 where the assistant says them) of a conversation.

    Of a template that writes earlier turns otherwise than the last one (some leave out what the assistant thought), as many
    documents as it takes for each to be what the model reads when it answers.
    """
    special = {number for number, added in tokenizer.added_tokens_decoder.items() if added.special}
    ends = special - {tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id} | {tokenizer.eos_token_id}
    if MARKS.search(str(tokenizer.chat_template)):
        render(messages, tokenizer, where)
        marked: Any = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        yield end_turns(marked["input_ids"], list(map(int, marked["assistant_masks"])), tokenizer, ends)
        return
    written: list[tuple[str, list[tuple[int, int]]]] = []  # texts, and where in them the assistant speaks
    for number, each in enumerate(messages):
        if each["role"] != "assistant":
            continue
        text = render(messages[: number + 1], tokenizer, where)
        if number:
            before = render(messages[:number], tokenizer, where, add_generation_prompt=True)
        else:  # templates refuse a conversation without a message
            before = text[: text.index(each["content"].strip())]
        if not text.startswith(before):
            raise InputError(
                f"{where}: the chat template writes what comes before turn {number + 1} otherwise once that turn is there, so "
                "the assistant's words cannot be told apart; mark them in the template with {% generation %}."
            )
        span = (len(before), len(text))
        if written and text.startswith(written[-1][0]):
            written[-1] = (text, [*written[-1][1], span])
        else:
            written.append((text, [span]))
    for text, spans in written:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        mask = [int(any(start <= a < end for start, end in spans)) for a, _ in encoded["offset_mapping"]]
        yield end_turns(encoded["input_ids"], mask, tokenizer, ends)


def render(messages: list[Message], tokenizer: PreTrainedTokenizerFast, where: str, **options: Any) -> str:
    """The conversation as the template writes it; InputError where that fails or a message is missing from it."""
    try:
        text: Any = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # the template is a program of the model's; it raises what it likes
        raise InputError(f"{where}: the chat template refuses the conversation ({one_line(error)}).") from None
    for each in (*(m for m in messages if m["role"] != "assistant"), *messages[-1:]):  # earlier answers may be shortened
        if each["content"].strip() not in text:
            raise InputError(f"{where}: the chat template leaves out what the {each['role']} says.")
    return text


def end_turns(
    ids: list[int], mask: list[int], tokenizer: PreTrainedTokenizerFast, ends: set[int | None]
) -> tuple[list[int], list[int]]:
    """The same, so that each assistant turn ends with the token that ends a turn; the last gets one where it has none.

    Templates differ: some mark that token as the assistant's, some do not, and some the line break after it too.
    """
    ids, mask = list(ids), list(mask)
    blank = {number for number in set(ids) if not tokenizer.decode([number], skip_special_tokens=False).strip()}
    turns = [i for i in range(len(ids)) if mask[i] and (i == 0 or not mask[i - 1])]
    for start in turns:
        stop = next((i for i in range(start, len(ids)) if not mask[i]), len(ids))
        last = stop - 1
        while last > start and ids[last] in blank:
            last -= 1
        if ids[last] in ends:  # it is there; what follows it is the template's
            mask[last + 1 : stop] = [0] * (stop - last - 1)
            continue
        after = stop
        while after < len(ids) and ids[after] in blank:
            after += 1
        if after < len(ids) and ids[after] in ends:
            mask[stop : after + 1] = [1] * (after + 1 - stop)
        elif stop == len(ids) and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
            mask.append(1)
    return ids, mask
