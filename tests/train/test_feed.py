import threading

import numpy as np
import pytest

from zaya_jax.train.feed import Feed


class Numbers:
    """Batches that are their number; remembers who made which, and fails at 9."""

    def __init__(self):
        self.made, self.threads = [], set()
        self.seven = threading.Event()

    def batch(self, number):
        self.made.append(number)
        self.threads.add(threading.current_thread())
        if number == 7:
            self.seven.set()
        if number == 9:
            raise OSError("the disk is gone")
        return np.full(3, number)


@pytest.fixture
def numbers():
    return Numbers()


def test_batches_come_as_asked_for_and_one_is_made_ahead(numbers):
    feed = Feed(numbers)
    assert [int(feed(i)[0]) for i in (4, 5, 6)] == [4, 5, 6]
    assert numbers.seven.wait(60)  # nobody asked for it, and to close the feed would cancel it
    feed.close()
    assert numbers.made == [4, 5, 6, 7]
    assert threading.current_thread() not in numbers.threads
    assert feed.waited > 0


def test_another_number_than_foreseen_is_made_as_well(numbers):
    feed = Feed(numbers)
    feed(0)
    assert int(feed(5)[0]) == 5 and int(feed(2)[0]) == 2
    feed.close()


def test_a_batch_that_cannot_be_made_fails_when_it_is_asked_for(numbers):
    feed = Feed(numbers)
    assert int(feed(8)[0]) == 8
    with pytest.raises(OSError, match="the disk is gone"):
        feed(9)
    feed.close()
