"""Cycles of Pallas kernels, counted in what the compiler for TPUs wrote of one: a grid of 8, in it 16 turns of 16 turns."""

from pathlib import Path

import pytest

from ftjax.cost import kernels

BUNDLES = (Path(__file__).parents[1] / "golden" / "kernel_bundles.txt").read_text(encoding="utf-8")


def test_loops_count_as_often_as_they_turn():
    bundles, grid, outer, inner = 0x8F + 1, 0x8B - 0x5 + 1, 0x78 - 0x28 + 1, 0x73 - 0x29 + 1  # the last 4 run after the branch
    turns = 8 + 2  # a pipeline of three stages: two more than the grid has
    once = bundles - grid
    assert kernels.cycles(BUNDLES) == once + turns * (grid - outer + 16 * (outer - inner + 16 * inner))


def test_a_counter_that_steps_by_two_turns_half_as_often():
    (step,) = {line for line in BUNDLES.replace("}", ";").split(";") if "sadd.s32 1, %s650_s27" in line}
    inner = 0x73 - 0x29 + 1
    halved = kernels.cycles(BUNDLES.replace(step, step.replace("sadd.s32 1,", "sadd.s32 2,")))
    assert kernels.cycles(BUNDLES) - halved == 10 * 16 * 8 * inner


def test_a_loop_that_does_not_tell_how_often_it_turns_is_not_counted():
    assert kernels.cycles(BUNDLES.replace("/* loop exit test */", "")) is None


def test_only_what_is_asked_for_is_read_and_the_directory_is_emptied(tmp_path, monkeypatch):
    directory = tmp_path / f"{kernels.OURS}abc"
    directory.mkdir()
    monkeypatch.setenv("LIBTPU_INIT_ARGS", kernels.options("--some=1", str(directory)))
    for name in ("mine.1", "another.2", "untold.3"):
        text = BUNDLES if name != "untold.3" else BUNDLES.replace("/* loop exit test */", "")
        (directory / f"1795-{name}-01-final_bundles.txt").write_text(text, encoding="utf-8")
    (directory / "1795-mine.1-00-schedule-analysis_final_bundles.txt").write_text("other", encoding="utf-8")
    called = {"mine.1": "a program", "mine.7": "a program", "untold.3": "one of which nothing is known"}
    assert kernels.take(called) == dict.fromkeys(("mine.1", "mine.7"), kernels.cycles(BUNDLES))
    assert not [*directory.iterdir()]
    assert kernels.take(called) == {}


@pytest.mark.parametrize("given", ["", "--some=1", "--xla_jf_dump_to={}"])
def test_what_somebody_else_has_the_compiler_write_stays(tmp_path, monkeypatch, given):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "1795-mine.1-01-final_bundles.txt").write_text(BUNDLES, encoding="utf-8")
    given = given.format(theirs)
    if "dump_to" in given:
        assert kernels.options(given, "/tmp/ours") == given
    monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
    assert kernels.take({"mine.1": "a program"}) == {}
    assert [*theirs.iterdir()]
