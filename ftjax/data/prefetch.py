"""Batches made by a thread, a few ahead of the step that takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def prefetch(source: Iterable[T], depth: int = 2) -> Generator[T]:
    """The items of `source`, of which up to `depth` are made ahead. What it raises is raised here, in its place.

    Closing the iterator (or leaving a for loop over it) ends the thread after the item it is at.
    """
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(more: bool, item: T | BaseException | None) -> None:
        while not closed.is_set():
            try:
                return ready.put((more, item), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put(True, item)
                if closed.is_set():
                    return
            put(False, None)
        except BaseException as error:
            put(False, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item  # type: ignore[misc]
            elif item is None:
                return
            else:
                raise item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()
