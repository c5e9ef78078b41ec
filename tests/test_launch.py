"""How a process begins and ends: the heap that steps run in, and what is left to be done at the end."""

import os
import subprocess
import sys

import pytest

from ftjax import launch

ENDING = """
import atexit, sys, threading, time
from ftjax.launch import ending_at_once
class Slow:
    def __del__(self):
        print("taken apart", file=sys.stderr, flush=True)
with ending_at_once():
    slow = Slow()
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    print("said")
    {}
"""


@pytest.mark.parametrize(
    ("last", "status", "apart"),
    [
        ("", 0, False),
        ("sys.exit()", 0, False),
        ("sys.exit(2)", 2, False),
        ("sys.exit('wrong')", 1, True),
        ("1 / 0", 1, True),
        ("sys.stdout.close()", None, True),
    ],
)
def test_a_process_ends_with_all_that_is_to_be_done_and_without_what_is_not(last, status, apart):
    done = subprocess.run([sys.executable, "-c", ENDING.format(last)], capture_output=True, text=True, timeout=60)
    assert ("taken apart" in done.stderr) is apart
    if status is not None:
        assert done.returncode == status
        assert done.stdout == "said\nthread\nat exit\n"
        assert ("wrong" in done.stderr, "ZeroDivisionError" in done.stderr) == ("wrong" in last, "1 / 0" in last)


HEAP = """
import os, pathlib, sys
from ftjax import launch
launch.with_huge_pages(pathlib.Path(sys.argv[1]))
print(launch.one_heap(), launch.VARIABLE in os.environ)
"""


@pytest.mark.skipif(not launch.huge_pages_possible(), reason="needs glibc 2.35")
@pytest.mark.parametrize(
    ("file", "package", "variables", "said"),
    [
        (None, None, {}, "True True"),
        ("vfio/vfio", "libtpu", {}, "True True"),  # there without any device, too
        ("accel0", "libtpu", {}, "False False"),
        ("vfio/0", "libtpu", {}, "False False"),
        ("nvidia0", "jax_plugins", {}, "False False"),
        ("nvidia0", "jax_plugins", {"JAX_PLATFORMS": "cpu"}, "True True"),
        ("nvidia0", None, {}, "True True"),  # JAX was installed for the CPU
        (None, None, {launch.VARIABLE: ""}, "False True"),
    ],
)
def test_threads_share_a_heap_only_where_the_cpu_computes(file, package, variables, said, tmp_path):
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    if package:
        (tmp_path / package).mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in (launch.VARIABLE, "JAX_PLATFORMS")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])} | variables
    command = [sys.executable, "-c", HEAP, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == said.split(), done.stderr
