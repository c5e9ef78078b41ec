"""What is shown while a run goes on, to a person at a terminal and in a log, and what to do when it is over."""

import io
import shlex
from types import SimpleNamespace

from rich.console import Console

from ftjax.cli import parse
from ftjax.config import TrainConfig
from ftjax.loop import Session
from ftjax.terminal import Terminal, what_next


def shown(terminal, *, is_terminal):
    """The terminal, writing where it can be read."""
    file = io.StringIO()
    terminal.console = Console(file=file, force_terminal=is_terminal, width=90, soft_wrap=True, highlight=False)
    return file


def test_the_panel_says_how_the_run_stands_and_what_is_compiled():
    terminal = Terminal()
    file = shown(terminal, is_terminal=True)
    with terminal:
        terminal.start("epoch 1/2", 10)
        terminal.doing("compiling")
        assert "compiling" in file.getvalue() and "epoch 1/2" in file.getvalue()
        terminal.advance(lambda: "loss 0.5000  64.0 examples/s")
        terminal._live.refresh()
        assert "loss 0.5000  64.0 examples/s" in file.getvalue() and "1/10" in file.getvalue()
        terminal.say("a [line] of its own")
    assert "a [line] of its own" in file.getvalue() and terminal._live is None


def test_without_a_terminal_there_are_plain_lines_now_and_then():
    terminal = Terminal(every_seconds=0.0)
    file = shown(terminal, is_terminal=False)
    with terminal:
        terminal.start("epoch 1/2", 10)
        terminal.doing("compiling")
        terminal.advance(lambda: "loss 0.5000")
    assert file.getvalue() == "epoch 1/2 1/10 loss 0.5000\n"


def test_what_comes_next_are_commands_that_ftjax_takes(tmp_path):
    config = TrainConfig(model="m", output=tmp_path / "a run", eval_file=tmp_path / "e.csv", text_column="sentence")
    lines = what_next(config, predicts=True).splitlines()[1:]
    commands = [parse(shlex.split(line.partition("ftjax ")[2])) for line in lines]
    assert [type(command).__name__ for command in commands] == ["Evaluate", "Predict", "Export"]
    assert commands[0].text_column == "sentence" and commands[0].file == config.eval_file
    assert commands[2].checkpoint == config.output and commands[2].push_to_hub == "OWNER/NAME"
    (line,) = what_next(config, predicts=False).splitlines()[1:]
    assert parse(shlex.split(line.partition("ftjax ")[2])).model == str(config.output / "model")


def test_no_rate_is_shown_before_a_step_has_been_waited_for():
    session = SimpleNamespace(tokens=[], step_seconds=[], loss=0.5, value=None, metric="accuracy")
    assert Session.status(session) == "loss 0.5000"
    session.tokens, session.step_seconds = [640, 320], [2.0, 2.0]
    assert Session.tokens_per_second.fget(session) == 240
