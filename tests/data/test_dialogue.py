"""What the assistant says, of templates that mark it and of those that do not; conversations that make no sense."""

import re

import pytest
from test_generate import CHAT_TEMPLATE, write_tokenizer

from ftjax.data.dialogue import conversation, dialogue_table, encode_conversations, up_to_the_last_answer
from ftjax.data.tokenize import load_tokenizer
from ftjax.errors import InputError

MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>' }}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{{ '</s> ' }}{% else %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s> ' }}{% endif %}{% endfor %}"
)
LINES = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
BREAKS = CHAT_TEMPLATE.replace("</s>'", "</s> '")
THINKS = (
    "{% for m in messages %}{{ m['role'] + ':' }}{% if loop.last and m['role'] == 'assistant' %}{{ '(hm)' }}{% endif %}"
    "{{ m['content'] + '</s>' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TURNS = ["Hi", "Hello", "And", "you?"]


@pytest.fixture
def tokenizer(tmp_path):
    def made(template):
        write_tokenizer(tmp_path, template=template)
        return load_tokenizer(tmp_path)

    return made


def learnt(examples, tokenizer):
    """The text of each row with what is learnt in brackets."""
    found = []
    for start, end in zip(examples.starts, examples.starts[1:], strict=False):
        text = "".join(
            f"[{piece}]" if label >= 0 else piece
            for piece, label in zip(
                tokenizer.convert_ids_to_tokens(examples.tokens[start:end]), examples.labels[start:end], strict=True
            )
        )
        found.append(text.replace("][", ""))
    return found


@pytest.mark.parametrize(
    ("template", "rows"),
    [
        (CHAT_TEMPLATE, ["<|user|>Hi</s><|assistant|>[Hello</s>]<|user|>And</s><|assistant|>[you?</s>]"]),
        (BREAKS, ["<|user|>Hi</s>Ġ<|assistant|>[Hello</s>]Ġ<|user|>And</s>Ġ<|assistant|>[you?</s>]Ġ"]),
        (MARKED, ["<|user|>Hi</s>Ġ<|assistant|>[Hello</s>]Ġ<|user|>And</s>Ġ<|assistant|>[you?</s>]Ġ"]),
        (LINES, ["user:HiĠassistant:[HelloĠ]user:AndĠassistant:[you?Ġ</s>]"]),
        (
            THINKS,
            ["user:Hi</s>assistant:[(hm)Hello</s>]", "user:Hi</s>assistant:Hello</s>user:And</s>assistant:[(hm)you?</s>]"],
        ),
    ],
    ids=["by difference", "a line break after the end", "marked without the end", "no end", "earlier turns written otherwise"],
)
def test_what_the_assistant_says_is_learnt_with_the_end_of_its_turn(template, rows, tokenizer):
    made = tokenizer(template)
    assert learnt(encode_conversations([conversation(TURNS, "a", 1)], made, 200, "a.jsonl"), made) == rows


def test_both_columns_are_read_and_what_follows_the_last_answer_is_left_out(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"turns": ["a", "b", "c"]}\n')
    table = dialogue_table(file)
    (cell,) = table.cells("messages")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert up_to_the_last_answer(conversation(cell, "a", 1), "a", 1) == messages
    file.write_text('{"turns": 3, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    (cell,) = dialogue_table(file).cells("messages")
    assert conversation(cell, "a", 1) == messages


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["a"], "row 3: has no turn of the assistant"),
        ([{"role": "user", "content": "a"}], "row 3: has no turn of the assistant"),
        ([], "row 3 is an empty list"),
        ("a", "row 3 is a string, not a list of messages"),
        (["a", 5], "row 3, message 1 is a string, not an object"),
        ([{"role": "user"}], "row 3, message 1: its content is null"),
        ([{"role": "user", "content": ["a"]}], "row 3, message 1: its content is a list"),
        ([{"role": "user", "content": "\ud800"}], "not valid Unicode"),
    ],
)
def test_cells_that_are_no_conversation(value, words):
    with pytest.raises(InputError, match=words):
        up_to_the_last_answer(conversation(value, "a.jsonl", 3), "a.jsonl", 3)


def said(role, content="a"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("template", "messages", "most", "words"),
    [
        (None, TURNS, 64, "no chat template"),
        (CHAT_TEMPLATE, [said("robot"), said("assistant")], 64, "row 2: the role 'robot' is unknown"),
        ("{{ raise_exception('turns must alternate') }}", TURNS, 64, r"row 2: .*refuses .*\(turns must alternate\)"),
        (
            CHAT_TEMPLATE.replace("for m in messages", "for m in messages if m['role'] != 'system'"),
            [said("system", "be kind"), *([said("user"), said("assistant")])],
            64,
            "row 2: the chat template leaves out what the system says",
        ),
        (CHAT_TEMPLATE, ["x" * 70, "b"], 64, "row 2: 92 tokens come before the assistant's first word, and a row holds 64"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", [said("assistant")], 64, "every token"),
        (MARKED.replace("'assistant'", "'nobody'"), TURNS, 64, "marks no token"),
        (
            "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
            TURNS,
            64,
            "row 2: the chat template writes what comes before turn 2 otherwise",
        ),
    ],
    ids=["no template", "role", "refuses", "leaves out", "too long", "all", "none", "not by turns"],
)
def test_mistakes_name_the_row(template, messages, most, words, tokenizer):
    first, second = conversation(TURNS, "a", 1), conversation(messages, "a", 2)
    rows = [second] if "every" in words or "marks no" in words else [first, second]
    if template is not None and ("raise" in template or "length" in template):
        rows = [second]
    words = words.replace("row 2", f"row {len(rows)}")
    with pytest.raises(InputError, match=words) as caught:
        encode_conversations(rows, tokenizer(template), most, "a.jsonl")
    assert "\n" not in str(caught.value) and re.match("a.jsonl", str(caught.value))
