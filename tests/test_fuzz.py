"""A little of experiments/fuzz.py: the same seeds every time, over every way that files come in."""

import subprocess
import sys

import pytest
from conftest import ROOT, command_environment


@pytest.mark.long
def test_damaged_files_of_every_kind_are_refused_in_words(tmp_path):
    command = [sys.executable, ROOT / "experiments" / "fuzz.py", "--files", "1200", "--keep", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=command_environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(" files, 0 failures")
    assert int(done.stdout.splitlines()[-1].split()[0].replace(",", "")) > 1000
