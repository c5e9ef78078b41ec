"""What README says in code runs."""

import dataclasses
import re
import shlex
from pathlib import Path

import jax
import pytest

from ftjax.cli import COMMANDS, parse
from ftjax.flags import flags_of

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_python_example_trains(tiny_bert, tmp_path, monkeypatch):
    program = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1)
    (tmp_path / "train.csv").write_text("text,label\n" + "nice film,positive\nbad film,negative\n" * 20)
    monkeypatch.chdir(tmp_path)
    program = (
        program.replace('"bert-base-uncased"', repr(str(tiny_bert))).replace("(32, 64, 128)", "(16,)").replace("128", "16")
    )
    names = {}
    exec(compile(program, str(README), "exec"), names)
    assert int(names["state"].step) == 2
    total, weight = jax.device_get(names["metrics"]["loss"])
    assert 0 < total / weight < 5


def test_every_make_target_and_path_that_readme_names_exists():
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text()
    assert all(
        re.search(rf"^{target}:", makefile, re.MULTILINE) for target in re.findall(r"make (\w+)", text) if target != "is"
    )
    for path in re.findall(r"(?:experiments|docs)/[\w/.]+\w", text):
        assert (README.parent / path).exists(), path


@pytest.mark.parametrize("page", [README, *(README.parent / "docs").glob("*.md"), README.parent / "CONTRIBUTING.md"])
def test_every_command_shown_is_one_that_ftjax_takes(page):
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("ftjax ")]
    for line in lines:
        _, name, *words = [word for word in shlex.split(line.replace("[", "").replace("]", ""), comments=True) if word != "..."]
        words = [w for before, w in zip(["", *words], words, strict=False) if w[0] != "$" or before[:2] == "--"]  # $FLAGS
        for flag in flags_of(COMMANDS[name]).values():  # `...` stands for what was said before
            if flag.default is dataclasses.MISSING and not flag.positional and flag.spelled not in words:
                words += [flag.spelled, "x"]
        parse([name, *words])
    assert lines or page != README
