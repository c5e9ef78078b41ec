"""A second process that compiles, so that the heap in which steps run stays whole.

A compiler asks for memory in small pieces, in many threads. In the process that trains these would wait for each other, because
there all share one heap (`ftjax.launch`), and would leave tens of thousands of free pieces of all sizes, among which the C
library then seeks every buffer of every step. In a process of its own the step of MiniLM compiles in 5.4 instead of 6.8 s.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ftjax import launch

SMALLEST_MODEL = 20_000_000
"""Bytes of files. For a smaller one no process is started."""
SMALLEST_PROGRAM = 60_000
"""Bytes that describe it to the compiler. A smaller one is compiled where it is asked for."""
COMPILES, KEEPS = ("jax._src.compiler", "backend_compile_and_load"), ("jax._src.compilation_cache", "put_executable_and_time")
PARAMETERS = {
    COMPILES: ["backend", "module", "executable_devices", "options", "host_callbacks"],
    KEEPS: ["cache_key", "module_name", "executable", "backend", "compile_time"],
}
"""JAX has no way to be told where to compile. The first of these functions does it, where nothing is kept from earlier
processes, and the second keeps what is new."""


class Compiler:
    """A process that compiles for the CPU what it is sent. It is of use about a second after it was started."""

    def __init__(self) -> None:
        self._asked, theirs = Pipe()
        path = os.pathsep.join(filter(None, sys.path))
        environment = {name: value for name, value in os.environ.items() if name != launch.VARIABLE}
        script = f"from ftjax.compiler import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", script],
            env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run
        )
        theirs.close()

    def __call__(self, module: bytes, options: bytes) -> bytes | None:
        """The serialized program of a module; None where the process has failed, whose work is then done where it was asked."""
        try:
            self._asked.send_bytes(module)
            self._asked.send_bytes(options)
            return self._asked.recv_bytes()
        except (OSError, EOFError):
            return None

    def close(self) -> None:
        """End the process."""
        self._asked.close()
        self._process.kill()
        self._process.wait()


def serve(descriptor: int) -> None:
    """What the process does: compile until nobody is there to ask. An error ends it; who asked will meet it again."""
    jax, xla_client = importlib.import_module("jax"), importlib.import_module("jaxlib.xla_client")
    device = jax.local_devices(backend="cpu")[0]
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError):
        while True:
            module, options = connection.recv_bytes(), connection.recv_bytes()
            options = xla_client.CompileOptions.ParseFromString(options)
            connection.send_bytes(device.client.compile_and_load(module, [device], options).serialize())
            ctypes.CDLL(None).malloc_trim(0)  # the steps may want the memory


def worthwhile(model: str) -> bool:
    """Whether this process has its heap from `launch.with_huge_pages`, and the model is no small one, as far as is known."""
    if not launch.one_heap():
        return False
    path = Path(model).expanduser()
    try:
        files = [*path.iterdir()] if path.is_dir() else [path]
        return not path.exists() or sum(file.stat().st_size for file in files) >= SMALLEST_MODEL
    except OSError:
        return False


def as_known() -> bool:
    """Whether this JAX compiles by the functions that `elsewhere` takes the place of."""
    found = [getattr(importlib.import_module(module), name, None) for module, name in PARAMETERS]
    return all(map(callable, found)) and [[*inspect.signature(f).parameters] for f in found if f] == [*PARAMETERS.values()]


class Serialized:
    """A program as the other process gave it. Loaded and serialized again, as JAX would keep it, it would lack functions."""

    def __init__(self, program: bytes) -> None:
        self._program = program

    def serialize(self) -> bytes:
        """What JAX keeps."""
        return self._program


@contextlib.contextmanager
def replaced(place: tuple[str, str], function: Callable[..., Any]) -> Iterator[None]:
    """Another function meanwhile stands in the place (module, name)."""
    module, name = importlib.import_module(place[0]), place[1]
    before = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def elsewhere(model: str) -> Iterator[None]:
    """Programs for one device of the CPU are meanwhile compiled by a process of their own, where that is `worthwhile`.

    What JAX has kept from earlier processes is found as before, and what is new is kept. Without effect where JAX is not
    `as_known`.
    """
    if not worthwhile(model) or not as_known():
        yield
        return
    compile_here, keep = (getattr(importlib.import_module(module), name) for module, name in PARAMETERS)
    compiler = Compiler()
    last: list[Any] = [None, None]  # the program that came from there last: as it was loaded, and as it came

    def compile_there(backend: Any, module: Any, executable_devices: Any, options: Any, host_callbacks: Any) -> Any:
        described = io.BytesIO()
        module.operation.write_bytecode(described)
        one = backend.platform == "cpu" and len(executable_devices) == 1 and not host_callbacks
        if one and len(described.getvalue()) >= SMALLEST_PROGRAM:
            program = compiler(described.getvalue(), options.SerializeAsString())
            if program is not None:
                last[:] = backend.deserialize_executable(program, executable_devices, options), Serialized(program)
                return last[0]
        return compile_here(backend, module, executable_devices, options, host_callbacks)

    def keep_as_it_came(cache_key: Any, module_name: Any, executable: Any, backend: Any, compile_time: Any) -> Any:
        given = last[1] if executable is last[0] else executable
        return keep(cache_key, module_name, given, backend, compile_time)

    with contextlib.closing(compiler), replaced(COMPILES, compile_there), replaced(KEEPS, keep_as_it_came):
        yield
