"""Pages: nothing leaks, nothing aliases, and what is known is what was written."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from zaya_jax.infer.engine.allocator import NOBODYS, Allocator, OutOfPagesError, keys_of

COUNT = 9


class Pages(RuleBasedStateMachine):
    """Holders that take, share, fill and let go of pages, against what each page must hold."""

    holders = Bundle("holders")

    def __init__(self):
        super().__init__()
        self.allocator, self.held, self.contents = Allocator(COUNT), [], {}
        self.serial = 0

    @rule(target=holders, count=st.integers(0, 4))
    def take(self, count):
        if count > self.allocator.available:
            before = self.allocator.available
            with pytest.raises(OutOfPagesError):
                self.allocator.take(count)
            assert self.allocator.available == before
            count = 0
        pages = self.allocator.take(count)
        assert NOBODYS not in pages
        assert not {page for other in self.held for page in other} & set(pages)
        for page in pages:  # overwritten: what was known of it must be known no more
            self.serial += 1
            self.contents[page] = f"written {self.serial}".encode()
        self.held.append(pages)
        return pages

    @rule(pages=holders)
    def keep(self, pages):
        for page in pages:
            self.allocator.keep(page, self.contents[page])

    @rule(target=holders, pages=holders)
    def share(self, pages):
        keys = [self.contents[page] for page in pages]
        found = self.allocator.find(keys)
        assert [self.contents[page] for page in found] == keys[: len(found)]
        self.allocator.hold(found)
        self.held.append(found)
        return found

    @rule(pages=consumes(holders))
    def release(self, pages):
        self.held.remove(pages)
        self.allocator.release(pages)

    @rule(pages=holders)
    def spoil(self, pages):
        alone = [page for page in pages if sum(page in other for other in self.held) == 1]
        assert self.allocator.spoil(pages) == alone
        assert not any(self.allocator.find([self.contents[page]]) for page in alone)
        for page in alone:
            self.serial += 1
            self.contents[page] = f"cleared {self.serial}".encode()

    @rule()
    def forget(self):
        self.allocator.forget()
        assert not any(self.allocator.find([key]) for key in self.contents.values())
        assert self.allocator.idle == 0

    @invariant()
    def nothing_leaks(self):
        self.allocator.check(self.held)
        in_use = {page for pages in self.held for page in pages}
        assert self.allocator.available == COUNT - 1 - len(in_use)


Pages.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPages = Pages.TestCase


def test_a_kept_page_survives_its_holder_and_the_oldest_is_overwritten_first():
    allocator = Allocator(4)
    first, second, third = ([page] for page in allocator.take(3))
    for pages, key in ((first, b"a"), (second, b"b"), (third, b"c")):
        allocator.keep(pages[0], key)
    allocator.release(second)
    allocator.release(first)
    allocator.release(third)
    assert allocator.available == 3 and allocator.find([b"b"]) == second
    assert allocator.take(1) == second  # let go first
    assert allocator.find([b"b"]) == [] and allocator.find([b"a", b"c"]) == first + third


def test_of_a_prompt_the_end_is_overwritten_before_the_beginning():
    allocator = Allocator(4)
    pages = allocator.take(3)
    for page, key in zip(pages, (b"1", b"2", b"3"), strict=True):
        allocator.keep(page, key)
    allocator.release(pages)
    allocator.take(1)
    assert allocator.find([b"1", b"2", b"3"]) == pages[:2]


def test_releasing_what_nobody_holds_is_refused():
    allocator = Allocator(3)
    pages = allocator.take(1)
    allocator.release(pages)
    with pytest.raises(ValueError, match="nobody holds"):
        allocator.release(pages)


def test_a_key_stands_for_all_tokens_before_it():
    keys = list(keys_of([1, 2, 3, 4, 5], 2))
    assert len(keys) == 2  # the last page is not full
    assert list(keys_of([1, 2, 3, 4], 2, keys[:1])) == keys[1:]
    assert list(keys_of([9, 2, 3, 4], 2))[1] != keys[1]
    assert list(keys_of([1, 2, 3, 5], 2))[0] == keys[0]
