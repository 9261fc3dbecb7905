"""The rounds, over a policy whose rollouts are known."""

import dataclasses
import re
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.infer.rsa.scripted import QUESTION, RIGHT, Scripted, count, is_right, tokenizer
from zaya_jax.answers import FORMATS
from zaya_jax.data import aggregate
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa import Ask, Sample, Settings, algorithm
from zaya_jax.infer.rsa.accounting import decoded, stage_cost
from zaya_jax.infer.rsa.prompts import draw, longest

CONVERSATION = ({"role": "user", "content": QUESTION},)
SMALL = Settings(population=6, candidates=3, rounds=2, tail=20, budget=300, final_budget=400)


def solve(policy, settings=SMALL, conversation=CONVERSATION, **options):
    return algorithm.solve(policy, conversation, settings, tokenizer(), **options)


def change(**fields) -> Settings:
    return dataclasses.replace(SMALL, **fields)


def aggregation(candidates, settings):
    prompt = aggregate.build_prompt(QUESTION, candidates, settings.shown)
    return ({"role": "user", "content": prompt},)


# --- The algorithm ---------------------------------------------------------------------------


def test_a_run_has_t_plus_one_stages_and_the_last_has_its_own_budget():
    policy = Scripted()
    result = solve(policy)
    assert [len(stage) for stage in result.stages] == [6, 6, 6]
    budgets = [ask.max_tokens for ask in policy.asks]
    assert budgets == [300] * 12 + [400] * 6
    assert [ask.messages for ask in policy.asks[:6]] == [CONVERSATION] * 6
    assert len({ask.seed for ask in policy.asks}) == 18


@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 2**63 - 1))
def test_candidates_are_drawn_without_replacement(population, candidates, seed):
    candidates = min(candidates, population)
    settings = change(population=population, candidates=candidates, seed=seed)
    for pick in draw(1, population, population, settings):
        assert len(pick) == candidates == len(set(pick)) and set(pick) <= set(range(population))
    assert draw(1, population, 4, settings) == draw(1, population, 4, settings)


def test_every_candidate_is_drawn_as_often():
    shown = np.zeros(8)
    for seed in range(400):
        for pick in draw(1, 8, 8, change(population=8, candidates=3, seed=seed)):
            shown[list(pick)] += 1
    assert np.abs(shown / shown.mean() - 1).max() < 0.1


def test_a_prompt_shows_the_tails_of_what_it_drew():
    policy = Scripted()
    result = solve(policy)
    for stage in (1, 2):
        asks = policy.asks[6 * stage : 6 * stage + 6]
        for ask, shown in zip(asks, result.shown[stage], strict=True):
            texts = [result.stages[stage - 1][i].text for i in shown]
            tails = [aggregate.candidate(text, tokenizer(), SMALL.shown) for text in texts]
            prompt = aggregate.build_prompt(QUESTION, tails, SMALL.shown)
            assert ask.messages == ({"role": "user", "content": prompt},)
            assert FORMATS["auto"] in prompt
            assert all(len(tokenizer().encode(tail.text)) <= SMALL.tail for tail in tails)


def test_aggregation_does_what_it_is_told_to():
    """Right if any candidate is: with k right of N, the chance is 1 - C(N-k, C) / C(N, C)."""
    rates, expected = [], []
    for seed in range(40):
        settings = change(population=8, candidates=2, rounds=1, seed=seed)
        first, second = solve(Scripted(skill=0.3), settings).stages
        right = sum(map(is_right, first))
        expected.append(1 - comb(8 - right, 2) / comb(8, 2))
        rates.append(np.mean([is_right(sample) for sample in second]))
    assert np.mean(rates) == pytest.approx(np.mean(expected), abs=0.07)
    assert np.mean(rates) > 0.4  # from 0.3


def test_each_rollout_is_right_exactly_if_what_it_was_shown_says_so():
    result = solve(Scripted(aggregates=lambda right, shown: 2 * right > shown), change(rounds=4))
    for before, after, shown in zip(
        result.stages, result.stages[1:], result.shown[1:], strict=False
    ):
        for sample, pick in zip(after, shown, strict=True):
            assert is_right(sample) == (2 * sum(is_right(before[i]) for i in pick) > len(pick))


def test_history_and_system_messages_stay():
    talk = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        CONVERSATION[0],
    )
    policy = Scripted()
    solve(policy, change(rounds=1), talk)
    for ask in policy.asks:
        assert ask.messages[:-1] == talk[:-1]
    assert QUESTION in policy.asks[-1].messages[-1]["content"]


# --- Special cases ---------------------------------------------------------------------------


def test_no_rounds_are_independent_rollouts():
    policy = Scripted()
    result = solve(policy, change(rounds=0))
    alone = [Scripted().answer(ask) for ask in policy.asks]
    assert list(result.stages[0]) == alone and len(result.stages) == 1
    assert all((a.messages, a.max_tokens) == (CONVERSATION, 400) for a in policy.asks)
    more = solve(Scripted(), change(rounds=2, final_budget=None, budget=400))
    assert more.stages[0] == result.stages[0]  # the rounds do not change how it begins


def test_one_candidate_is_delethink_each_from_its_own_end():
    settings = change(candidates=1, rounds=3)
    policy = Scripted(thinks=False, words=60)
    result = solve(policy, settings)
    seeds = np.array([ask.seed for ask in policy.asks]).reshape(4, 6)
    for lineage in range(6):
        writer = Scripted(thinks=False, words=60)
        text, messages = "", CONVERSATION
        for stage in range(4):
            budget = settings.final_budget if stage == 3 else settings.budget
            seed = int(seeds[stage, lineage])
            sample = writer.answer(Ask(messages, budget, settings.sampling, seed))
            assert result.stages[stage][lineage] == sample
            text, cut = aggregate.tail(sample.text, settings.tail, tokenizer())
            shown = aggregate.Candidate(text, finished=sample.finished, truncated=cut)
            prompt = aggregate.build_prompt(QUESTION, [shown], settings.shown)
            messages = ({"role": "user", "content": prompt},)


def test_a_tail_of_the_whole_budget_is_rsa():
    policy = Scripted(words=60)
    settings = change(tail=300, budget=300, final_budget=None)
    result = solve(policy, settings)
    texts = [sample.text for sample in result.stages[0]]
    reasoning = [re.fullmatch("<think>(.*)</think>The answer.*", text)[1] for text in texts]
    for ask, shown in zip(policy.asks[6:12], result.shown[1], strict=True):
        whole = [aggregate.Candidate(reasoning[i], True, False) for i in shown]
        assert ask.messages == aggregation(whole, settings)  # all of the reasoning, no answer


def test_the_hybrid_shows_answers_of_what_finished():
    policy = Scripted()
    solve(policy, change(hybrid=True, rounds=1))
    prompt = policy.asks[-1].messages[-1]["content"]
    assert "The answer is \\boxed" in prompt and "I say" not in prompt and "references" in prompt


def test_the_hybrid_shows_all_of_what_never_thought():
    policy, settings = Scripted(thinks=False, words=60), change(hybrid=True, rounds=1)
    result = solve(policy, settings)
    for ask, shown in zip(policy.asks[6:], result.shown[1], strict=True):
        whole = [aggregate.Candidate(result.stages[0][i].text, True, False) for i in shown]
        assert ask.messages == aggregation(whole, settings)


def test_what_never_thought_is_finished_when_it_ends():
    policy = Scripted(thinks=False)
    solve(policy, change(rounds=1))
    assert "unfinished" not in policy.asks[-1].messages[-1]["content"]
    policy = Scripted(thinks=False)
    solve(policy, change(rounds=1, budget=20))
    assert "unfinished" in policy.asks[-1].messages[-1]["content"]


# --- Bounds and accounting -------------------------------------------------------------------


@pytest.mark.parametrize("rounds", range(9))
def test_prompts_are_bounded_whatever_the_rounds(rounds):
    settings = change(rounds=rounds, tail=30)
    result = solve(Scripted(words=200), settings)
    bound = longest(CONVERSATION, settings, count)
    aggregates = settings.candidates * bool(rounds)
    longer = longest(CONVERSATION, dataclasses.replace(settings, tail=1030), count)
    assert longer - bound == 1000 * aggregates  # all the rest is a constant
    for cost in result.costs:
        assert cost.longest_prompt <= bound
        assert cost.longest_context <= bound + settings.final_budget


@pytest.mark.parametrize("rounds", range(4))
def test_prompts_are_bounded_in_the_hybrid_whoever_selects(rounds):
    written = tokenizer().encode("check " * 400)

    def writes(asks, done, progress=None):  # answers that fill their budgets
        for i, ask in enumerate(asks):
            text = "</think>" + tokenizer().decode(written[: ask.max_tokens - 1])
            done(i, Sample(text, ask.max_tokens, count(ask.messages), "eos", thinking=True))

    few = change(population=2, candidates=2, rounds=rounds, tail=16, budget=32, hybrid=True)
    for selection in ("majority", "aggregate"):
        settings = dataclasses.replace(few, selection=selection)
        result = solve(writes, settings)
        bound = longest(CONVERSATION, settings, count)
        assert all(cost.longest_prompt <= bound for cost in result.costs)
        shown = settings.longest_shown
        assert shown == 400 if selection == "aggregate" else shown in (16, 32)


@given(
    st.lists(st.text(st.sampled_from("ab \n{}é語😀"), max_size=80), min_size=4, max_size=4),
    st.integers(1, 12),
)
def test_prompts_are_bounded_whatever_was_written(texts, tail):
    settings = change(population=4, candidates=3, rounds=1, tail=tail)

    def writes(asks, done, progress=None):
        for i, ask in enumerate(asks):
            done(i, Sample(texts[i], 5, count(ask.messages), "length"))

    result = solve(writes, settings)
    assert result.costs[1].longest_prompt <= longest(CONVERSATION, settings, count)


def test_costs_count_what_was_decoded_and_nothing_else():
    policy = Scripted()
    result = solve(policy, change(selection="aggregate"))
    flat = [sample for stage in result.stages for sample in stage]
    assert result.decoded == sum(sample.tokens for sample in flat) == decoded(result.stages)
    assert [cost.generations for cost in result.costs] == [6, 6, 6, 1]
    assert result.decoded == pytest.approx(sum(c.generations * c.mean for c in result.costs))
    assert result.costs[1].prefilled == sum(s.prompt_tokens for s in result.stages[1])
    cut = stage_cost([Sample("", 7, 3, "length"), Sample("", 5, 9, "eos")])
    assert (cut.unfinished, cut.longest, cut.longest_context, cut.mean) == (1, 7, 14, 6)


# --- Determinism and mistakes ----------------------------------------------------------------


def test_a_seed_decides_everything_and_the_order_of_work_nothing():
    first, again = solve(Scripted()), solve(Scripted(backwards=True))
    assert first.as_json() == again.as_json()
    other = solve(Scripted(), change(seed=1))
    assert other.stages[0] != first.stages[0] and other.shown != first.shown


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"candidates": 7}, "candidates = 7 of population = 6"),
        ({"population": 0}, "population = 0"),
        ({"rounds": -1}, "rounds = -1"),
        ({"tail": 0}, "tail = 0"),
        ({"budget": 0}, "budget = 0"),
        ({"final_budget": -3}, "final_budget = -3"),
        ({"selection": "vote"}, "selection = 'vote'"),
        ({"kind": "box"}, "did you mean boxed"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_settings_are_checked(fields, words):
    with pytest.raises(UserError, match=words):
        change(**fields)


@pytest.mark.parametrize(
    "conversation", [(), ({"role": "user", "content": " "},), ({"role": "system", "content": "x"},)]
)
def test_there_must_be_something_to_solve(conversation):
    with pytest.raises(UserError, match="last message|end with"):
        solve(Scripted(), conversation=conversation)


def test_a_policy_that_breaks_its_word_is_found_out():
    def long_winded(asks, done, progress=None):
        done(0, Sample("", 10_000, 1, "eos"))

    def silent(asks, done, progress=None):
        pass

    with pytest.raises(ValueError, match="10000 tokens of at most 300"):
        solve(long_winded)
    with pytest.raises(ValueError, match="0 of 6"):
        solve(silent)
    assert RIGHT  # the scripted policy's own answer
