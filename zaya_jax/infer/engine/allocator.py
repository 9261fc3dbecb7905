"""Which pages of the pool are free, which are held, and which keep what a prompt to come may share.

A page has room for a fixed number of tokens in every layer. Page 0 is nobody's: what has no place
is written there. Every other page is in exactly one of three states:

* free: on the list, its contents mean nothing;
* held: by one or more sequences; one that several hold is full, and nobody writes to it;
* idle: held by none, but known by the key of its contents, and taken back when that is asked for
  again, or overwritten, the one that was let go longest ago first.

No jax here: this is bookkeeping on the host, and its invariants are property-tested.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Key = bytes

NOBODYS = 0
"""The page that idle rows and padding write to; never read with effect."""


class OutOfPagesError(RuntimeError):
    """More pages were asked for than are free or idle."""


class Allocator:
    """Hands out pages 1 to `count` - 1.

    Attributes:
      count: pages of the pool, the one that is nobody's among them.
    """

    def __init__(self, count: int):
        """Args: count: at least 2, or there is nothing to hand out.

        Raises:
          ValueError: a count below 2.
        """
        if count < 2:
            raise ValueError(f"a pool of {count} pages: expected at least 2")
        self.count = count
        self._free = list(range(count - 1, NOBODYS, -1))  # taken from the end: low numbers first
        self._holders = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}

    @property
    def available(self) -> int:
        """Pages that `take` could hand out: free or idle."""
        return len(self._free) + len(self._idle)

    @property
    def idle(self) -> int:
        """Pages that nobody holds and that keep known contents."""
        return len(self._idle)

    def take(self, count: int) -> list[int]:
        """Pages for one holder, contents undefined.

        Raises:
          OutOfPagesError: fewer are available; then none is taken.
        """
        if count > self.available:
            raise OutOfPagesError(f"{count} pages asked for, {self.available} available")
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if not self._free:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
            self._free.append(page)
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def find(self, keys: Iterable[Key]) -> list[int]:
        """The pages of the longest beginning of `keys` whose contents are all known; not yet
        held."""
        found = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def count_idle(self, pages: Iterable[int]) -> int:
        """How many of these nobody holds."""
        return sum(page in self._idle for page in pages)

    def hold(self, pages: Iterable[int]) -> None:
        """One holder more for each of these, which `find` gave."""
        for page in pages:
            self._holders[page] += 1
            self._idle.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """One holder fewer for each of these.

        The last are let go first: the end of a prompt, which fewer share than its beginning, is
        then overwritten before it.

        Raises:
          ValueError: a page that nobody holds.
        """
        for page in reversed(pages):
            if self._holders[page] < 1:
                raise ValueError(f"page {page} is released and nobody holds it")
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def keep(self, page: int, key: Key) -> None:
        """Makes the contents of a held, full page known by `key`.

        Where another page is known by it already, that one stays; this one is just held.
        """
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def spoil(self, pages: Iterable[int]) -> list[int]:
        """Of held pages, those that nobody else holds; their contents are not known any more."""
        alone = [page for page in pages if self._holders[page] == 1]
        for page in alone:
            if page in self._key_of:
                del self._page_of[self._key_of.pop(page)]
        return alone

    def forget(self) -> None:
        """No contents are known any more: they were made by weights that are gone."""
        self._page_of.clear()
        self._key_of.clear()
        self._free.extend(self._idle)
        self._idle.clear()

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless the pages of `holders`, one list each, are exactly those
        held, every page is in one state, and what is known is known both ways."""
        counted = [0] * self.count
        for pages in holders:
            assert len(set(pages)) == len(pages), "a holder has a page twice"
            for page in pages:
                counted[page] += 1
        assert counted == self._holders, "held pages are not those of the holders"
        held = {page for page in range(self.count) if counted[page]}
        states = [*self._free, *self._idle, *held]
        assert sorted(states) == list(range(1, self.count)), "a page is lost or in two states"
        assert set(self._idle) <= set(self._key_of), "an idle page is not known"
        assert {page: key for key, page in self._page_of.items()} == self._key_of


def keys_of(
    tokens: Sequence[int], size: int, known: Sequence[Key] = (), salt: bytes = b""
) -> Iterator[Key]:
    """The key of each full page of a sequence: a hash of all tokens up to the page's end.

    Args:
      tokens: of the whole sequence.
      size: tokens of a page.
      known: keys of the first pages, which are not computed again (and not yielded).
      salt: goes into every key: sequences of different salts have no key in common.
    """
    before = known[-1] if known else hashlib.blake2b(salt, digest_size=16).digest()
    for begin in range(len(known) * size, len(tokens) - size + 1, size):
        page = np.asarray(tokens[begin : begin + size], np.int32).tobytes()
        before = hashlib.blake2b(before + page, digest_size=16).digest()
        yield before
