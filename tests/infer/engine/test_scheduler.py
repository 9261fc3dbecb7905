"""Plans carried out by a device that only remembers which tokens were written where.

Whatever is read must be what the sequence itself would have written: pages that are shared, parked,
overwritten too early or handed out twice show up as other tokens.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.infer.engine.allocator import Allocator
from zaya_jax.infer.engine.options import Options
from zaya_jax.infer.engine.scheduler import Scheduler, Sequence


class Device:
    """Pages of tokens; a token is written with all that stand before it."""

    def __init__(self, options: Options, capacity: int, pages: int):
        self.options, self.pages = options, {}
        self.scheduler = Scheduler(options, capacity, Allocator(pages))
        self.live: dict[int, Sequence] = {}
        self.read = self.steps = 0

    def write(self, sequence: Sequence, begin: int, end: int) -> None:
        size = self.options.page
        for position in range(begin, end):
            page = sequence.pages[position // size]
            self.pages[page, position % size] = tuple(sequence.tokens[: position + 1])

    def check(self, sequence: Sequence, length: int) -> None:
        size = self.options.page
        for position in range(length):
            found = self.pages[sequence.pages[position // size], position % size]
            assert found == tuple(sequence.tokens[: position + 1])

    def step(self) -> None:
        plan, size = self.scheduler.plan(), self.options.page
        for sequence, pages in plan.parked:
            sequence.saved = [[self.pages.get((p, i)) for i in range(size)] for p in pages]
        for sequence, pages in plan.restored:
            for page, saved in zip(pages, sequence.saved, strict=True):
                self.pages |= {(page, i): token for i, token in enumerate(saved)}
            sequence.saved = None
        for chunk in plan.chunks:
            assert chunk.start % size == 0 and chunk.length <= chunk.size <= chunk.table * size
            assert chunk.start + chunk.length <= len(chunk.sequence.pages) * size
            self.check(chunk.sequence, chunk.start)
            self.write(chunk.sequence, chunk.start, chunk.start + chunk.length)
            self.read += chunk.length
        for sequence, limit in plan.rows:
            assert 1 <= limit <= plan.steps
            self.check(sequence, sequence.written)
            for _ in range(limit):
                self.write(sequence, sequence.written, sequence.written + 1)
                self.scheduler.advance(sequence, [self.next(sequence)], fed=1)
        for chunk in plan.chunks:
            if chunk.last:
                self.scheduler.advance(chunk.sequence, [self.next(chunk.sequence)], fed=0)
        assert len(plan.rows) <= self.options.rows
        for sequence in list(self.live.values()):
            if sequence.remaining <= 0:
                self.end(sequence)
        self.steps += 1
        self.scheduler.allocator.check([s.pages for s in self.live.values() if s.pages])

    def next(self, sequence: Sequence) -> int:
        """A function of what stands before, so that equal prompts have equal completions."""
        return hash(tuple(sequence.tokens)) % 3

    def add(self, id: int, prompt: list[int], most: int) -> None:
        self.live[id] = Sequence(id, list(prompt), len(prompt), len(prompt) + most)
        self.scheduler.add(self.live[id])

    def end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        del self.live[sequence.id]


@given(
    seed=st.integers(0, 10**6),
    page=st.sampled_from([2, 3, 4]),
    factors=st.sampled_from([(1,), (1, 2), (2, 3)]),
    rows=st.integers(1, 5),
    spare=st.integers(0, 12),
    steps=st.integers(1, 5),
    invariant=st.booleans(),
)
@settings(max_examples=80)
def test_every_sequence_reads_what_it_wrote(seed, page, factors, rows, spare, steps, invariant):
    draw, capacity = random.Random(seed), 24
    options = Options(
        rows=rows,
        page=page,
        chunks=tuple(page * factor for factor in factors),
        prefill_tokens=draw.choice([1, 8, 30]),
        steps=steps,
        batch_invariant=invariant,
    )
    device = Device(options, capacity, 1 + -(-capacity // page) + spare)
    begun = 0
    while begun < 25 or device.live:
        if begun < 25 and draw.random() < 0.5:
            prompt = [draw.randrange(2) for _ in range(draw.randint(1, capacity - 1))]
            device.add(begun, prompt, draw.randint(1, capacity - len(prompt)))
            begun += 1
        if device.live and draw.random() < 0.1:
            device.end(draw.choice(list(device.live.values())))
        if draw.random() < 0.03:
            device.scheduler.forget()
        device.step()
        assert device.steps < 3000, "nothing moves"
    allocator = device.scheduler.allocator
    assert device.scheduler.idle and allocator.available == allocator.count - 1


def run(options: Options, prompts, most: int = 4, pages: int = 40) -> Device:
    device = Device(options, 64, pages)
    for id, prompt in enumerate(prompts):
        device.add(id, prompt, most)
    while device.live:
        device.step()
    return device


SMALL = Options(rows=4, page=4, chunks=(4, 8), prefill_tokens=8)


def test_of_equal_prompts_that_come_together_one_is_read():
    device = run(SMALL, [[7] * 33] * 4)
    assert device.read == 33 + 3  # of the others only the token whose logits are wanted


def test_invariant_sharing_is_of_whole_chunks_of_prompts():
    options = Options(rows=4, page=4, chunks=(4, 8), prefill_tokens=8, batch_invariant=True)
    device = run(options, [[7] * 31] * 2)
    assert device.read == 31 + (31 - 24)


def test_a_conversation_goes_on_from_its_own_completion():
    device = run(SMALL, [[5] * 9], most=8)
    completion = [5] * 9
    while len(completion) < 17:
        completion.append(hash(tuple(completion)) % 3)
    before = device.read
    device.add(1, completion, 2)
    while device.live:
        device.step()
    assert device.read - before == 1


def test_the_youngest_is_parked_and_comes_back_before_others_begin():
    device = Device(SMALL, 64, 1 + 16)
    for id in range(3):
        device.add(id, [id] * 20, 30)
    parked = []
    while device.live:
        device.step()
        parked.append([sequence.id for sequence in device.scheduler.parked])
        running = [sequence.id for sequence in device.scheduler.running]
        assert running == sorted(running)
        assert not running or 0 not in device.live or running[0] == 0
    assert device.scheduler.preemptions > 0 and any(parked)


def test_who_cannot_begin_anyway_slows_nobody_down():
    """One that waits for pages, and not only for a row: the others go on with many tokens."""
    device = Device(Options(rows=4, page=4, chunks=(8,), prefill_tokens=8, steps=4), 64, 1 + 16)
    device.add(0, [0] * 40, 20)
    while not device.live[0].decodes:
        device.step()
    device.add(1, [1] * 40, 4)
    plan = device.scheduler.plan()
    assert not plan.chunks and [row.limit for row in plan.rows] == [4] and plan.steps == 4


def test_one_that_is_bound_gets_one_token_and_the_others_more():
    device = Device(Options(rows=4, page=4, chunks=(8,), prefill_tokens=64, steps=4), 64, 40)
    for id in range(2):
        device.add(id, [id] * 7, 20)
    device.live[1].stepwise = True
    device.step()
    assert [row.limit for row in device.scheduler.plan().rows] == [4, 1]


def test_sequences_of_different_salts_share_no_page():
    device = Device(SMALL, 64, 40)
    for id, salt in enumerate([b"alice", b"bob", b"alice"]):
        device.add(id, [7] * 33, 4)
        device.live[id].salt = salt
    while device.live:
        device.step()
    assert device.read == 33 + 33 + 1


@pytest.mark.parametrize(("left", "size"), [(1, 64), (64, 64), (65, 64), (192, 256), (500, 256)])
def test_chunks_depend_on_what_is_left_alone(left, size):
    assert Options().chunk_for(left) == size
