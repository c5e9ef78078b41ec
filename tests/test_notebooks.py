"""The notebooks run: their cells one after the other in a process of their own, with the small settings, on a CPU.

Cells are plain Python, so no kernel is needed here, nor the 25 packages that one takes.
"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, command_environment

NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def cells(path):
    """The notebook's code cells."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_plain_python_without_outputs_that_installs_only_on_colab(path):
    found = cells(path)
    for cell in found:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        compile("".join(cell["source"]), str(path), "exec")
    assert "google.colab" in "".join(found[0]["source"]) and "ftjax[tpu,demo]" in "".join(found[0]["source"])


@pytest.mark.pages
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    program = "\n\n".join("".join(cell["source"]) for cell in cells(path))
    environment = command_environment() | {"FTJAX_SMALL": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "runs").rglob("report.html"))
