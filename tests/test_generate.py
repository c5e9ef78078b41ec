"""Generation from a cache against plain argmax of whole rows; sampling; likelihoods; the commands."""

import importlib.util
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, command_environment, run_command
from decoders import FAMILIES, decoder_logits, write_decoder
from test_decoders import tiny

from ftjax.cli import Chat, Generate, run
from ftjax.errors import InputError
from ftjax.generate import FINISHED, Sampling, TextGenerator, choose, generate, pieces, stop_tokens, stream
from ftjax.likelihood import continuation_logprobs


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 96, n).tolist() for n in lengths]


def slowly(model, params, prompt, count):
    """Greedy, the whole row anew for every token, in a row of fixed length padded on the right."""
    row = list(prompt)
    for _ in range(count):
        ids, mask = np.zeros((1, 48), np.int32), np.zeros((1, 48), np.int32)
        ids[0, : len(row)], mask[0, : len(row)] = row, 1
        logits = decoder_logits(model, params, {"input_ids": ids, "attention_mask": mask})
        row.append(int(logits[0, len(row) - 1].argmax()))
    return row[len(prompt) :]


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma3"])
def test_tokens_from_the_cache_are_those_of_whole_rows(name):
    model, params = tiny(name, causal_lm=True)
    prompts = prompts_of(5, 17, 9)
    found = generate(model, params, prompts, Sampling(max_new_tokens=12))
    assert found == [slowly(model, params, prompt, 12) for prompt in prompts]


def test_a_prompt_gets_the_same_text_whatever_its_company():
    model, params = tiny("llama", causal_lm=True)
    prompts = prompts_of(5, 12, 3, 8, 4)
    together = generate(model, params, prompts, Sampling(8, 1.5, seed=3), batch_size=5)
    assert {len(text) for text in together} == {8}
    assert together == generate(model, params, prompts, Sampling(8, 1.5, seed=3), batch_size=2)
    assert together != generate(model, params, prompts, Sampling(8, 1.5, seed=4), batch_size=5)


def test_a_text_ends_at_a_stop_token_and_at_the_last_position():
    model, params = tiny("gpt2", causal_lm=True)
    prompts = prompts_of(6, 60)
    whole = generate(model, params, prompts, Sampling(max_new_tokens=20))
    assert [len(text) for text in whole] == [20, 4]  # the model has 64 positions
    stop = whole[0][5]
    cut = generate(model, params, prompts[:1], Sampling(max_new_tokens=20, stop=(stop,)))
    assert cut == [whole[0][: whole[0].index(stop)]]
    steps = list(stream(model, params, prompts, Sampling(max_new_tokens=6)))
    assert [step.tolist()[1] for step in steps] == [*whole[1], FINISHED, FINISHED]


def test_one_program_serves_all_prompts_of_a_bucket():
    from ftjax.generate import _programs

    model, params = tiny("llama", causal_lm=True)
    begin, go_on = _programs(model)
    begin.clear_cache(), go_on.clear_cache()
    for length, count in ((3, 5), (16, 40), (9, 20)):
        generate(model, params, prompts_of(length), Sampling(max_new_tokens=count))
    assert begin._cache_size() == go_on._cache_size() == 1


def test_prompts_that_leave_no_room_are_refused():
    model, params = tiny("gpt2", causal_lm=True)
    for prompt, words in (([], "empty"), ([5] * 64, "64 tokens, the model 64 positions")):
        with pytest.raises(InputError, match=words):
            generate(model, params, [[3], prompt], Sampling())
    for bad in (Sampling(0), Sampling(temperature=-1.0), Sampling(temperature=float("nan")), Sampling(top_p=0.0)):
        with pytest.raises(InputError, match="must be"):
            bad.check()


def test_drawing_follows_temperature_and_top_p():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(temperature, top_p):
        drawn = choose(jnp.repeat(logits, 4000, 0), keys, jnp.float32(temperature), jnp.float32(top_p))
        return np.bincount(np.asarray(drawn), minlength=4) / 4000

    assert np.abs(shares(1.0, 1.0) - [0.5, 0.3, 0.15, 0.05]).max() < 0.03
    assert np.abs(shares(0.5, 1.0) - np.array([25, 9, 2.25, 0.25]) / 36.5).max() < 0.03
    assert np.abs(shares(1.0, 0.7) - [0.625, 0.375, 0, 0]).max() < 0.03  # the second is needed to reach 0.7
    assert shares(1.0, 0.01)[0] == 1.0
    assert choose(logits, None, jnp.float32(0), jnp.float32(1)).tolist() == [0]


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_likelihoods_of_continuations_are_those_of_whole_rows(name):
    model, params = tiny(name, causal_lm=True)
    prompts, continuations = prompts_of(4, 19, 7, 2, 11), prompts_of(3, 1, 2, seed=1)
    found = continuation_logprobs(model, params, prompts, continuations, batch_size=2)
    assert [array.shape for array in found] == [(5, 3), (5, 1), (5, 2)]
    for i, prompt in enumerate(prompts):
        for array, continuation in zip(found, continuations, strict=True):
            row = [*prompt, *continuation]
            ids, mask = np.zeros((1, 48), np.int32), np.zeros((1, 48), np.int32)
            ids[0, : len(row)], mask[0, : len(row)] = row, 1
            logits = decoder_logits(model, params, {"input_ids": ids, "attention_mask": mask})[0]
            scores = np.asarray(jax.nn.log_softmax(logits))
            expected = [scores[len(prompt) + j - 1, token] for j, token in enumerate(continuation)]
            assert np.abs(array[i] - expected).max() <= 1e-5
    with pytest.raises(InputError, match="Prompt 2 has 63 tokens"):
        continuation_logprobs(model, params, [[5], [5] * 63], [[4, 4]])


def test_a_character_of_several_tokens_comes_when_it_is_whole():
    data = "né €!".encode()
    decode = lambda tokens: bytes(tokens).decode("utf-8", errors="replace")  # noqa: E731
    assert list(pieces(decode, data)) == ["n", "é", " ", "€", "!", ""]
    assert "".join(pieces(decode, data[:-2])) == "né \N{REPLACEMENT CHARACTER}"  # what never becomes whole comes at the end


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tokenizer(directory, *, template=None, vocab_size=96):
    """A byte-level tokenizer of at most this many tokens: special ones, then single bytes. No padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    letters = [chr(c) for c in range(33, 127)][: vocab_size - len(special) - 1]
    vocab = {token: i for i, token in enumerate([*special, "Ġ", *letters])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
    fast.save_pretrained(directory)


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A tiny random Llama with a tokenizer and a chat template."""
    directory = tmp_path_factory.mktemp("talker")
    write_decoder(directory, FAMILIES["llama"])
    write_tokenizer(directory, template=CHAT_TEMPLATE)
    return directory


def test_generate_command(talker, tmp_path, capsys):
    prompts = ["Hello", "a b", "The quick brown fox"]
    out = run_command("generate", "--model", talker, "--prompt", *prompts, "--max-new-tokens", 5, "--json")
    assert out.returncode == 0, out.stderr
    lines = [json.loads(line) for line in out.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    generator = TextGenerator.load(talker)
    expected = generator.generate(prompts, Sampling(max_new_tokens=5))
    assert lines == expected
    assert all(line["text"] == generator.tokenizer.decode(line["token_ids"], skip_special_tokens=True) for line in lines)
    file = tmp_path / "rows.txt"
    file.write_text("Hello\n")
    run(Generate(talker, file=file, max_new_tokens=5))
    assert capsys.readouterr().out == lines[0]["text"] + "\n"


needs_templates = pytest.mark.skipif(importlib.util.find_spec("jinja2") is None, reason="the package jinja2 is not installed")


@needs_templates
def test_chat_command(talker):
    command = [sys.executable, "-m", "ftjax", "chat", "--model", str(talker), "--max-new-tokens", "4"]
    lines = "Hello\n\nAgain\n/quit\nnever\n"
    out = subprocess.run(command, input=lines, capture_output=True, text=True, env=command_environment(), cwd=ROOT)
    assert out.returncode == 0, out.stderr
    generator = TextGenerator.load(talker)
    messages, expected = [], ""
    for question in ("Hello", "Again"):
        messages.append({"role": "user", "content": question})
        answer = "".join(pieces(generator.decode, generator.stream(generator.chat_prompt(messages), Sampling(4))))
        messages.append({"role": "assistant", "content": answer})
        expected += answer + "\n"
    assert out.stdout == expected


def test_mistakes_are_one_line(talker, tmp_path, minilm):
    plain, headless = tmp_path / "plain", tmp_path / "headless"
    write_decoder(plain, FAMILIES["llama"])
    write_decoder(headless, FAMILIES["llama, linear"], causal_lm=False)
    for directory in (plain, headless):
        write_tokenizer(directory)
    for command, words in (
        (Generate(talker, ("x" * 70,)), "Prompt 1 has 70 tokens, the model 64 positions"),
        (Generate(talker), "either --prompt or --file"),
        (Generate(talker, ("a",), batch_size=0), "--batch-size 0"),
        (Generate(talker, ("a",), top_p=2.0), "--top-p"),
        (Generate(headless, ("a",)), "no head for the next token"),
        (Generate(minilm, ("a",)), "bert is no decoder"),
        (Chat(plain), "no chat template"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            run(command)
        assert "\n" not in str(caught.value)
    out = run_command("chat", "--model", plain)
    assert out.returncode == 2
    assert out.stderr == f"ftjax: {plain}: its tokenizer has no chat template; use ftjax generate.\n"


@needs_templates
def test_a_template_that_refuses_is_one_line(talker, tmp_path):
    shutil.copytree(talker, tmp_path / "bad")
    (tmp_path / "bad" / "chat_template.jinja").write_text("{{ raise_exception('no user here') }}")
    with pytest.raises(InputError, match=r"chat template failed \(no user here\)") as caught:
        run(Chat(tmp_path / "bad"))
    assert "\n" not in str(caught.value)


def test_every_end_that_the_files_name_stops(talker, tmp_path):
    shutil.copytree(talker, tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    generator = TextGenerator.load(tmp_path / "a")
    assert set(generator.stop) == {2, 7, 9}
    assert stop_tokens(generator.pretrained, generator.tokenizer) == generator.stop
