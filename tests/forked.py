"""The real command in a process of its own, forked from one that has the libraries imported.

Importing them is most of a short command's time, and the suite runs a hundred commands.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import ftjax.cli
import ftjax.compare
import ftjax.doctor
import ftjax.generate
import ftjax.inference
import ftjax.loop
import ftjax.parameters
import ftjax.report
import ftjax.zero_shot.run  # all of them for the processes to come

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class Command:
    """A command that has been started. environment: all of it. largest_file: in bytes, as on a disk that is full."""

    def __init__(self, *arguments, environment, cwd=None, largest_file=None):
        self.arguments = ["ftjax", *map(str, arguments)]
        self.directory = tempfile.TemporaryDirectory()
        self.output = [Path(self.directory.name, name) for name in ("stdout", "stderr")]
        self.process = CONTEXT.Process(target=run, args=(self.arguments, environment, cwd, largest_file, self.output))
        self.process.start()

    @property
    def running(self):
        return self.process.is_alive()

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def finish(self, timeout):
        """Wait for its end: exit status (negative for a signal), stdout and stderr."""
        self.process.join(timeout)
        if self.running:
            self.process.kill()
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        texts = [path.read_text() for path in self.output]
        self.directory.cleanup()
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *texts)


def run(arguments, environment, cwd, largest_file, output):
    """What the process does."""
    for number, path in zip((1, 2), output, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = arguments
    try:
        ftjax.cli.main()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
