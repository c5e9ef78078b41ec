"""One line where native code aborts the process, instead of its stack trace.

JAX's distributed runtime ends a process that way when another one is lost: it logs which one and aborts. No Python code is
asked, and none can stop it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable

LAST = 2**16  # bytes of the log that an abort is explained by
NOTHING = re.compile(rb"(?!)")
EVERY = 1.0  # second, for what native code has written to be shown


def explain_aborts(explain: Callable[[str], str | None], chatter: re.Pattern[bytes] = NOTHING) -> None:
    """From now on an abort is said in the line that `explain` makes of what native code wrote on stderr; exit code 2.

    None is for an abort about something else, which then takes its usual way. So that the log can be read back, and a stack
    trace held back, what native code writes goes to a temporary file, and from there to stderr every second and at the end;
    `sys.stderr` is as direct as before. chatter: whole lines of it that are not shown.
    """
    system, stderr, log = ctypes.CDLL(None), os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
    system.signal.restype = ctypes.c_void_p
    shown = 0

    def size() -> int:
        return os.fstat(log.fileno()).st_size

    def show(end: int) -> None:
        nonlocal shown
        text = os.pread(log.fileno(), max(0, end - shown), shown)
        shown += len(text)
        os.write(stderr, chatter.sub(b"", text))

    def explained() -> str | None:
        return explain(os.pread(log.fileno(), LAST, max(0, size() - LAST)).decode(errors="replace"))

    def keep_showing() -> None:
        """What has been there for a while: not the warnings just before an abort, nor its stack trace, which takes time."""
        while True:
            end = size()
            time.sleep(EVERY)
            if explained() is not None:
                return
            show(end)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(number: int) -> None:
        if (line := explained()) is None:
            show(size())
            system.signal(number, ctypes.c_void_p(before))
            return  # abort() then ends the process itself
        os.write(stderr, f"ftjax: {line}\n".encode())
        os._exit(2)

    def restore(_: object) -> None:
        os.dup2(stderr, 2)
        show(size())
        system.signal(signal.SIGABRT, ctypes.c_void_p(before))

    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(log.fileno(), 2)
    before = system.signal(signal.SIGABRT, on_abort)
    atexit.register(restore, on_abort)  # which must live as long as the process
    threading.Thread(target=keep_showing, daemon=True).start()
