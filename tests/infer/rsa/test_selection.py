"""Which answer is selected."""

import dataclasses

import pytest

from tests.infer.rsa.scripted import QUESTION, RIGHT, Scripted, tokenizer
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa import Sample, Settings, algorithm
from zaya_jax.infer.rsa.selection import answers, by_verifier, majority
from zaya_jax.infer.rsa.settings import PRESETS, RECOMMENDED

SETTINGS = Settings(population=5, candidates=2, rounds=1, tail=20, budget=300)


def box(answer: str, finish: str = "eos") -> Sample:
    return Sample(f"<think>so</think>It is \\boxed{{{answer}}}", 9, 5, finish)


def solve(policy, verifier=None, **fields):
    settings = dataclasses.replace(SETTINGS, **fields)
    conversation = [{"role": "user", "content": QUESTION}]
    return algorithm.solve(policy, conversation, settings, tokenizer(), verifier=verifier)


def test_equal_answers_vote_together_however_they_are_written():
    samples = [box("7"), box("\\frac{1}{2}"), box("0.5"), box("1/2"), box("7")]
    chosen = majority(samples, "boxed")
    assert [vote.voters for vote in chosen.votes] == [(1, 2, 3), (0, 4)]
    assert (chosen.answer, chosen.rollout) == ("\\frac{1}{2}", 1)


def test_ties_go_to_what_ended_by_itself_and_then_to_the_first():
    chosen = majority([box("1", "length"), box("2"), box("1"), box("2")], "boxed")
    assert (chosen.answer, chosen.rollout) == ("2", 1)
    chosen = majority([box("3"), box("2")], "boxed")
    assert chosen.answer == "3"
    chosen = majority([box("1", "length"), box("1"), box("2")], "boxed")
    assert chosen.rollout == 1


def test_rollouts_without_an_answer_do_not_vote():
    silent = Sample("<think>so \\boxed{3}", 9, 5, "length")
    assert answers([silent, box("4")], "boxed") == [None, "4"]
    assert majority([silent, silent, box("4")], "boxed").answer == "4"
    chosen = majority([silent], "boxed")
    assert (chosen.answer, chosen.rollout, chosen.votes) == (None, None, ())
    opened = dataclasses.replace(silent, text="so \\boxed{3}", thinking=True)
    assert answers([opened], "boxed") == [None]


def test_a_comparison_of_ones_own_may_say_what_is_the_same():
    chosen = majority(
        [box("2x"), box("5"), box("x+x")], "boxed", lambda a, b: "x" in a and "x" in b
    )
    assert chosen.votes[0].voters == (0, 2)


def test_a_verifier_chooses_and_support_breaks_its_ties():
    samples = [box("1"), box("2"), box("3"), box("3")]
    chosen = by_verifier(samples, "boxed", lambda texts: [0.5, None, 0.9, 0.9])
    assert (chosen.answer, chosen.rollout) == ("3", 2)
    assert chosen.scores == (0.5, None, 0.9, 0.9)
    chosen = by_verifier(samples, "boxed", lambda texts: [0.9, 0, 0.9, 0.1])
    assert chosen.rollout == 2  # more give its answer
    chosen = by_verifier(samples, "boxed", lambda texts: [None] * 4)
    assert chosen.answer is None and len(chosen.votes) == 3


def test_a_run_selects_as_it_is_told():
    skilled = {"skill": 0.7, "aggregates": lambda right, shown: 2 * right >= shown}
    assert solve(Scripted(**skilled)).chosen.answer == RIGHT
    none = solve(Scripted(**skilled), selection="none")
    assert none.chosen.answer is None and none.chosen.votes and len(none.answers) == 5

    def knows(texts):
        return [float(f"\\boxed{{{RIGHT}}}" in text) for text in texts]

    rare = Scripted(skill=0.3, aggregates=lambda right, shown: right == shown)
    verified = solve(rare, knows, selection="verifier", rounds=0, seed=2)
    assert verified.chosen.answer == RIGHT and sum(verified.chosen.scores) < 3
    with pytest.raises(UserError, match="needs a verifier"):
        solve(rare, selection="verifier")


def test_a_last_aggregation_is_one_more_stage():
    policy = Scripted(skill=0.6)
    result = solve(policy, selection="aggregate", final_budget=350)
    last = policy.asks[-1]
    assert len(result.stages) == 3 and len(result.stages[2]) == 1
    assert last.sampling.temperature == 0.3 and last.max_tokens == 350
    assert len(result.shown[2][0]) == 2 and len(result.answers) == 5
    assert result.chosen.answer == answers(result.stages[2], "auto")[0]


def test_presets_are_the_reports():
    rows = {
        name: (s.rounds, s.population, s.candidates, s.budget // 1024, s.tail // 1024)
        for name, s in PRESETS.items()
    }
    assert rows == {
        "delethink-8k": (4, 16, 1, 8, 4),
        "8k-4k": (2, 16, 4, 8, 4),
        "16k-4k": (2, 16, 4, 16, 4),
        "40k-4k": (2, 16, 4, 40, 4),
        "40k-8k": (2, 16, 4, 40, 8),
        "apex-high": (8, 16, 4, 16, 4),
        "apex-xhigh": (8, 32, 4, 32, 4),
    }
    assert RECOMMENDED in PRESETS
    for settings in PRESETS.values():
        assert settings.sampling.temperature == settings.sampling.top_p == 1.0
        assert settings.final_budget == 40 * 1024
