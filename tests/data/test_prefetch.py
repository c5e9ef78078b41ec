import threading
import time

import pytest

from ftjax.data.prefetch import prefetch


def test_items_come_in_order_and_ahead():
    made = []
    source = prefetch((made.append(i) or i for i in range(5)), depth=2)
    assert next(source) == 0
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 3
    assert list(source) == [1, 2, 3, 4]


def test_an_error_comes_in_its_place():
    def source():
        yield 1
        raise ValueError("no more")

    found = prefetch(source())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no more"):
        next(found)


def test_closing_ends_the_thread():
    before = threading.active_count()
    source = prefetch(iter(range(10**9)))
    next(source)
    source.close()
    assert threading.active_count() == before
