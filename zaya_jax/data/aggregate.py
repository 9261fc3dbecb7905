"""Aggregation for Markovian RSA: prompts that show a model the ends of earlier rollouts.

`select`, `candidate` and `build_prompt` are what a round of inference does too (report section on
test-time compute); `requests` and `examples` use them to make training data from a teacher's
rollouts (report section IV-A). Candidates are cut to tau tokens, so a prompt has a bounded length
however long the rollouts were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.data import messages
from zaya_jax.data.cache import atomic_path
from zaya_jax.data.messages import THINK
from zaya_jax.data.readers import lines
from zaya_jax.data.sandbox import Template
from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError

PROMPT = Path(__file__).with_name("aggregate.jinja")
BOXED = "Give the final answer in \\boxed{}."
"""How answers to mathematical problems are asked for."""


@dataclass(frozen=True)
class Settings:
    """How rollouts become a prompt.

    Attributes:
        candidates: C, rollouts shown in one prompt. With 1, each rollout refines its own
            (Delethink); with more, they are drawn.
        tail: tau, tokens kept of a candidate's reasoning.
        hybrid: PaCoRe: a finished rollout is shown by its whole answer, not by the end of its
            reasoning.
        answer_format: the prompt's request for the form of the answer.
        template: a Jinja file instead of our wording; see `aggregate.jinja` for its variables.
    """

    candidates: int = 4
    tail: int = 4096
    hybrid: bool = False
    answer_format: str = BOXED
    template: str | None = None

    def __post_init__(self):
        for name in ("candidates", "tail"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Candidate:
    """A rollout as a prompt shows it.

    Attributes:
        text: of at most tau tokens, except a finished rollout's answer in the hybrid.
        finished: whether the rollout got past `</think>`.
        truncated: whether `text` is the end of something longer.
    """

    text: str
    finished: bool
    truncated: bool


@dataclass(frozen=True)
class Pool:
    """A teacher's rollouts for one problem.

    Attributes:
        problem: its text.
        rollouts: n of them, `<think>` reasoning `</think>` answer, or reasoning that was cut off.
        aggregated: the teacher's answers to aggregation prompts: the numbers of the rollouts that
            were shown, in their order, and what the teacher made of them.
        answer: of the problem, for tasks of RL; None if it is not known.
        verifier: that compares with it, as `rl.tasks` name them.
        metadata: that the verifier wants.
    """

    problem: str
    rollouts: tuple[str, ...]
    aggregated: tuple[tuple[tuple[int, ...], str], ...] = ()
    answer: str | None = None
    verifier: str = "math"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, record: Any) -> Pool:
        """Reads `{problem, rollouts, aggregated: [{candidates, rollout}], answer, verifier,
        metadata}`.

        Raises:
            ValueError: a field is missing or malformed; names it.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"a pool is a {type(record).__name__}; it must be an object")
        problem, rollouts = _text(record.get("problem"), "problem"), record.get("rollouts")
        if not isinstance(rollouts, Sequence) or isinstance(rollouts, str) or not rollouts:
            raise ValueError("rollouts must be a list of at least one text")
        rollouts = tuple(_text(rollout, f"rollouts[{i}]") for i, rollout in enumerate(rollouts))
        given = record.get("aggregated") or []
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ValueError("aggregated must be a list of objects")
        aggregated = tuple(
            _aggregated(entry, f"aggregated[{i}]", len(rollouts)) for i, entry in enumerate(given)
        )
        answer, verifier = record.get("answer"), record.get("verifier", "math")
        if answer is not None:
            answer = _text(str(answer), "answer")
        metadata = record.get("metadata") or {}
        if not isinstance(metadata, Mapping):
            raise ValueError(f"metadata is a {type(metadata).__name__}; it must be an object")
        return cls(problem, rollouts, aggregated, answer, _text(verifier, "verifier"), metadata)


@dataclass(frozen=True)
class Request:
    """An aggregation prompt that a teacher is to answer.

    Attributes:
        candidates: numbers of the rollouts shown, in order.
        messages: the conversation up to the answer.
    """

    candidates: tuple[int, ...]
    messages: tuple[dict[str, str], ...]


def requests(
    pool: Pool, tokenizer: Tokenizer, settings: Settings, *, seed: int, count: int | None = None
) -> list[Request]:
    """Prompts for a teacher; a pure function of its arguments, whatever else is in the data.

    Args:
        pool: n rollouts of a problem.
        tokenizer: counts the tokens of tails.
        settings: how rollouts are shown.
        seed: of the draws, together with the pool's contents.
        count: how many; by default n, as in a round of inference.

    Raises:
        ValueError: fewer rollouts than a prompt shows.
    """
    count = len(pool.rollouts) if count is None else count
    generator = _generator(pool, seed)
    picks = select(len(pool.rollouts), settings.candidates, count, generator)
    return [Request(pick, _messages(pool, pick, tokenizer, settings)) for pick in picks]


def examples(
    pool: Pool, tokenizer: Tokenizer, settings: Settings
) -> list[tuple[dict[str, str], ...]]:
    """Conversations to learn from: each aggregation prompt with the teacher's answer to it.

    No verifier looks at the answers; those that came to no end are left out. What was shown is
    recorded in the pool, so nothing is drawn.
    """
    return [
        (*_messages(pool, picked, tokenizer, settings), turn)
        for picked, rollout in pool.aggregated
        if (turn := _turn(rollout)) is not None
    ]


def read_pools(path: Path) -> Iterator[Pool]:
    """Pools of a JSONL file (plain, .gz or .zst), one a line; empty lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed line or archive; names the file, the line and the field.
    """
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        try:
            yield Pool.parse(record)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


class Written(NamedTuple):
    """What became of pools: examples that were written, and answers left out as unfinished."""

    examples: int
    unfinished: int


def write_examples(
    pools: Iterable[Pool], out: Path, tokenizer: Tokenizer, settings: Settings
) -> Written:
    """Writes the examples of all pools as a JSONL of `{"messages": [...]}`, to be trained on.

    The file is there when it is whole.
    """
    written = unfinished = 0
    with atomic_path(out) as scratch, scratch.open("w", encoding="utf-8") as file:
        for pool in pools:
            found = examples(pool, tokenizer, settings)
            for conversation in found:
                file.write(json.dumps({"messages": conversation}, ensure_ascii=False) + "\n")
            written += len(found)
            unfinished += len(pool.aggregated) - len(found)
    return Written(written, unfinished)


class Asked(NamedTuple):
    """What became of pools: tasks that were written, and pools that have no answer."""

    tasks: int
    unanswered: int


def write_tasks(
    pools: Iterable[Pool],
    out: Path,
    tokenizer: Tokenizer,
    settings: Settings,
    *,
    seed: int,
    count: int | None = None,
) -> Asked:
    """Writes aggregation prompts as tasks of RL, `{prompt, answer, verifier, metadata}` a line.

    With one candidate each rollout is gone on with by itself (self-aggregation), with more they are
    put together (expert aggregation); see `requests`. The file is there when it is whole.

    Args:
        seed, count: as `requests` takes them.

    Raises:
        ValueError: a pool has fewer rollouts than a prompt shows.
    """
    tasks = unanswered = 0
    with atomic_path(out) as scratch, scratch.open("w", encoding="utf-8") as file:
        for pool in pools:
            if pool.answer is None:
                unanswered += 1
                continue
            for request in requests(pool, tokenizer, settings, seed=seed, count=count):
                line = {
                    "prompt": request.messages[-1]["content"],
                    "answer": pool.answer,
                    "verifier": pool.verifier,
                    "metadata": dict(pool.metadata),
                    "source": "aggregation",
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                tasks += 1
    return Asked(tasks, unanswered)


def select(
    rollouts: int, candidates: int, count: int, generator: np.random.Generator
) -> list[tuple[int, ...]]:
    """Which rollouts each of `count` prompts shows.

    Each prompt draws C of n without replacement, all ordered choices alike. With C = 1 nothing is
    drawn: prompt i refines rollout i mod n, its own lineage.

    Raises:
        ValueError: C > n.
    """
    if candidates > rollouts:
        raise ValueError(
            f"a prompt of {candidates} candidates needs as many rollouts; there are {rollouts}"
        )
    if candidates == 1:
        return [(i % rollouts,) for i in range(count)]
    return [tuple(generator.permutation(rollouts)[:candidates].tolist()) for _ in range(count)]


def candidate(rollout: str, tokenizer: Tokenizer, settings: Settings) -> Candidate:
    """What a prompt shows of a rollout.

    The end of its reasoning: of what stands before the first `</think>`, or of everything if there
    is none, the last tau tokens. In the hybrid, a finished rollout is shown by all that stands
    after its last `</think>` instead. Where the one is empty, the other is taken.
    """
    reasoning, closed, _ = rollout.partition(THINK[1])
    reasoning = reasoning.strip().removeprefix(THINK[0]).strip()
    answer = rollout.rpartition(THINK[1])[2].strip() if closed else ""
    if answer and settings.hybrid:
        return Candidate(answer, finished=True, truncated=False)
    text, truncated = tail(reasoning or answer, settings.tail, tokenizer)
    return Candidate(text, bool(closed), truncated)


def tail(text: str, tokens: int, tokenizer: Tokenizer) -> tuple[str, bool]:
    """The last tokens of a text, and whether that is less than all of it.

    The tail is encoded again as part of a prompt, where its beginning may fall into more tokens;
    then more is cut, so that it never has more than `tokens`. It begins with a whole character.
    """
    ids, offsets = tokenizer.encode_with_offsets(text)
    if len(ids) <= tokens:
        return text, False
    first = len(ids) - tokens
    while first < len(ids):
        start = offsets[first][0]
        if offsets[first - 1][1] > start:  # within a character: it goes, too
            start = offsets[first - 1][1]
        excess = len(tokenizer.encode(text[start:])) - tokens
        if excess <= 0:
            return text[start:], True
        first += excess
    return "", True


def build_prompt(problem: str, candidates: Sequence[Candidate], settings: Settings) -> str:
    """The text of the aggregation prompt: one user message.

    Raises:
        UserError: the template cannot be read.
        ValueError: no candidates, or the template fails.
    """
    if not candidates:
        raise ValueError("an aggregation prompt needs at least one candidate")
    return _template(str(settings.template or PROMPT)).render(
        problem=problem,
        candidates=[vars(shown) for shown in candidates],
        hybrid=settings.hybrid,
        answer_format=settings.answer_format,
    )


@lru_cache(maxsize=8)
def _template(path: str) -> Template:
    return Template.load(path)


def _messages(
    pool: Pool, picked: Iterable[int], tokenizer: Tokenizer, settings: Settings
) -> tuple[dict[str, str], ...]:
    shown = [candidate(pool.rollouts[i], tokenizer, settings) for i in picked]
    return ({"role": "user", "content": build_prompt(pool.problem, shown, settings)},)


def _turn(rollout: str) -> dict[str, str] | None:
    """A rollout as the assistant's message; None if it has no answer, or stops while it thinks.

    One whose `<think>` stood in the prompt gets it back.
    """
    if THINK[1] in rollout and THINK[0] not in rollout:
        rollout = THINK[0] + rollout
    turn = {"role": "assistant", "content": rollout}
    try:
        messages.parse([turn])
    except ValueError:
        return None
    return turn


def _aggregated(entry: Any, path: str, rollouts: int) -> tuple[tuple[int, ...], str]:
    """Reads one of a pool's `aggregated`."""
    picked = entry.get("candidates") if isinstance(entry, Mapping) else None
    rollout = entry.get("rollout") if isinstance(entry, Mapping) else None
    if not isinstance(picked, Sequence) or isinstance(picked, str) or not picked:
        raise ValueError(f"{path}.candidates must be a list of numbers of rollouts")
    for i in picked:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < rollouts:
            raise ValueError(f"{path}.candidates has {i!r}; there are rollouts 0 to {rollouts - 1}")
    if len(set(picked)) < len(picked):
        raise ValueError(f"{path}.candidates shows a rollout twice: {list(picked)}")
    return tuple(picked), _text(rollout, f"{path}.rollout")


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path} is {value!r:.60}; it must be text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path} is no Unicode text: {error.reason}") from None
    return value


def _generator(pool: Pool, seed: int) -> np.random.Generator:
    """Randomness of one pool, which no other pool and no order of work has a part in."""
    digest = hashlib.sha256()
    for text in (pool.problem, *pool.rollouts):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return np.random.default_rng([seed, *np.frombuffer(digest.digest(), "<u4").tolist()])
