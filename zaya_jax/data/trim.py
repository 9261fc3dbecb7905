"""AP-trimming: answer-preserving trimming of reasoning to a context length (report section IV-A).

A long chain of thought that does not fit is cut at its tail, right before `</think>`, so that
the model still learns how thinking begins and what the answer is. Nothing else is ever cut.
It works on token ids: to cut the text and encode it again could change its length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zaya_jax.data.example import Example

KEPT, TRIMMED, STRIPPED, DROPPED = ACTIONS = ("kept", "trimmed", "stripped", "dropped")


class Trimmed(NamedTuple):
    """What became of an example.

    Attributes:
        example: of at most `budget` tokens; None if it was dropped.
        action: one of `ACTIONS`.
    """

    example: Example | None
    action: str


def trim(example: Example, budget: int) -> Trimmed:
    """Makes an example fit by the report's four steps.

    1. `kept`: it has at most `budget` tokens.
    2. `trimmed`: the thinking of the last assistant turn loses its tail, as many tokens as there
       are too many; all of it at most. The tags stay.
    3. `stripped`: the think blocks of all earlier assistant turns go, tags included, and the last
       turn's thinking is trimmed as in step 2 if that is still needed.
    4. `dropped`: what is not thinking (the tags of the last turn's blocks included) is too long.

    Where the last turn has several think blocks, between tool calls for instance, their thinking
    counts as one text that is cut from its end. A last turn without thinking leaves only step 3.

    Trim the original for every budget. From a trimmed example a smaller budget gives the same
    result unless it takes step 3, which could have kept more of the original's last thinking.

    Args:
        example: the conversation.
        budget: tokens, at least 1.

    Raises:
        ValueError: a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget} tokens; it must be at least 1")
    if len(example) <= budget:
        return Trimmed(example, KEPT)
    if shorter := _cut_last_thinking(example, budget):
        return Trimmed(shorter, TRIMMED)
    stripped = _without_earlier_thinking(example)
    if len(stripped) <= budget:
        return Trimmed(stripped, STRIPPED)
    if shorter := _cut_last_thinking(stripped, budget):
        return Trimmed(shorter, STRIPPED)
    return Trimmed(None, DROPPED)


def smallest_budget(example: Example) -> int:
    """The least number of tokens that `trim` can make of an example."""
    thinking = sum(think.stop - think.start for think in example.thinks)
    earlier_tags = sum(2 for think in example.thinks if think.turn < example.turns - 1)
    return len(example) - thinking - earlier_tags


def _cut_last_thinking(example: Example, budget: int) -> Example | None:
    """Step 2; None if all the thinking of the last turn is not enough."""
    excess = len(example) - budget
    keep = np.ones(len(example), bool)
    for think in reversed(example.thinks):
        if think.turn != example.turns - 1:
            break
        cut = min(excess, think.stop - think.start)
        keep[think.stop - cut : think.stop] = False
        excess -= cut
    return None if excess else example.take(keep)


def _without_earlier_thinking(example: Example) -> Example:
    """Step 3 up to where step 2 comes in again."""
    keep = np.ones(len(example), bool)
    for think in example.thinks:
        if think.turn < example.turns - 1:
            keep[think.start - 1 : think.stop + 1] = False
    return example.take(keep)
