"""The heap that steps run in: what compiling leaves behind is taken out of use, and nothing else."""

import os
import subprocess
import sys

import pytest

from ftjax import launch

SCRIPT = """
import ctypes
from ftjax import launch
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
large = c.malloc(2**26)
pieces = [c.malloc(3000 + 16 * (i % 500)) for i in range(20_000)]
for piece in (large, *pieces[::2]):
    c.free(piece)  # every other one: none can join its neighbour
freed = {*pieces[::2]}
kept = c.malloc(3000)
launch.set_fragments_aside()
print(kept in freed, any(c.malloc(3000 + 16 * i) in freed for i in range(500)), large <= c.malloc(2**24) < large + 2**26)
"""


@pytest.mark.skipif(not launch.huge_pages_possible(), reason="needs glibc 2.35")
@pytest.mark.parametrize(("tunables", "said"), [(launch.TUNABLES, "True False True"), ("", "True True")])
def test_only_small_free_pieces_are_taken_out_of_use_and_only_where_the_heap_is_ours(tunables, said):
    environment = {name: value for name, value in os.environ.items() if name != launch.VARIABLE}
    environment |= {launch.VARIABLE: tunables} if tunables else {}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(said)


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
