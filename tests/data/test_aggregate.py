import dataclasses
import gzip
import json

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.data import chat
from zaya_jax.data.aggregate import (
    BOXED,
    Pool,
    Settings,
    Written,
    build_prompt,
    candidate,
    examples,
    read_pools,
    requests,
    select,
    tail,
    write_examples,
    write_tasks,
)
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.errors import UserError
from zaya_jax.rl.rewards.tasks import read_tasks

POOL = Pool(
    "What is 2+2?",
    (
        "<think>\nfirst " + "long " * 30 + "end one</think>\n\nIt is 4.",
        "<think>second " + "long " * 30 + "end two",
        "<think>third</think>It is 5.",
        "<think>fourth</think>It </think> is 6.",
    ),
    aggregated=(((2, 0), "<think>compare</think>4"), ((1,), "<think>go on</think>4")),
)

RECORD = {
    "problem": POOL.problem,
    "rollouts": list(POOL.rollouts),
    "aggregated": [{"candidates": list(c), "rollout": r} for c, r in POOL.aggregated],
}


@pytest.fixture(scope="module")
def tokenizer(documents):
    texts = [document.text for document in documents]
    return train_bpe(texts, 340, chat.SPECIAL_TOKENS)


# --- Tails -----------------------------------------------------------------------------------


@given(st.text(st.sampled_from("ab \n😀é語"), max_size=60), st.integers(1, 30))
def test_a_tail_is_an_end_of_at_most_so_many_tokens(tokenizer, text, tokens):
    end, truncated = tail(text, tokens, tokenizer)
    assert text.endswith(end) and "\ufffd" not in end
    assert len(tokenizer.encode(end)) <= tokens
    assert truncated == (len(tokenizer.encode(text)) > tokens) == (end != text)
    if truncated:  # hardly more than that is cut: a character and what its loss joins up
        assert len(tokenizer.encode(end)) >= tokens - 4


@pytest.mark.parametrize(
    ("hybrid", "rollout", "shown"),
    [
        (False, 0, (True, True, "end one")),
        (False, 1, (False, True, "end two")),
        (False, 2, (True, False, "third")),
        (False, 3, (True, False, "fourth")),  # before the first </think>
        (True, 0, (True, False, "It is 4.")),
        (True, 1, (False, True, "end two")),
        (True, 3, (True, False, "is 6.")),  # after the last one
    ],
)
def test_what_is_shown_of_a_rollout(tokenizer, hybrid, rollout, shown):
    found = candidate(POOL.rollouts[rollout], tokenizer, Settings(tail=20, hybrid=hybrid))
    assert (found.finished, found.truncated) == shown[:2]
    assert found.text.endswith(shown[2])
    assert found.truncated or found.text == shown[2]


def test_a_rollout_that_is_empty_on_one_side(tokenizer):
    assert candidate("<think></think>4", tokenizer, Settings()).text == "4"
    assert candidate("<think>a</think>", tokenizer, Settings(hybrid=True)).text == "a"


# --- Who is shown ----------------------------------------------------------------------------


@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 20), st.integers(0, 2**32))
def test_draws_are_without_replacement(n, c, count, seed):
    c = min(n, c)
    picks = select(n, c, count, np.random.default_rng(seed))
    assert len(picks) == count
    assert all(len(set(pick)) == c and set(pick) <= set(range(n)) for pick in picks)


def test_draws_are_even_in_every_place():
    picks = np.array(select(4, 2, 6000, np.random.default_rng(0)))
    pairs = np.bincount(picks[:, 0] * 4 + picks[:, 1], minlength=16).reshape(4, 4)
    assert (np.diag(pairs) == 0).all()
    assert (abs(pairs[~np.eye(4, dtype=bool)] - 500) < 90).all()  # four standard deviations


def test_one_candidate_goes_on_with_its_own_lineage():
    assert select(3, 1, 5, np.random.default_rng(0)) == [(0,), (1,), (2,), (0,), (1,)]


def test_requests_depend_on_pool_and_seed_only(tokenizer):
    settings = Settings(candidates=2, tail=20)
    drawn = [request.candidates for request in requests(POOL, tokenizer, settings, seed=1)]
    assert len(drawn) == len(POOL.rollouts)
    again = requests(Pool(POOL.problem, POOL.rollouts), tokenizer, settings, seed=1)
    assert [request.candidates for request in again] == drawn
    more = requests(POOL, tokenizer, settings, seed=1, count=40)
    assert [request.candidates for request in more[:4]] == drawn
    for other, seed in ((POOL, 2), (dataclasses.replace(POOL, problem="?"), 1)):
        others = requests(other, tokenizer, settings, seed=seed, count=40)
        assert [r.candidates for r in others] != [r.candidates for r in more]


# --- Prompts and examples --------------------------------------------------------------------


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_prompt_holds_problem_candidates_and_request(tokenizer, hybrid):
    settings = Settings(candidates=3, tail=20, hybrid=hybrid)
    shown = [candidate(POOL.rollouts[i], tokenizer, settings) for i in (2, 0, 1)]
    prompt = build_prompt(POOL.problem, shown, settings)
    name = "Reference" if hybrid else "Candidate"
    marks = ["(its final answer)", "(its final answer)"] if hybrid else ["", "(only the end of"]
    marks += ["(unfinished; only the end of its reasoning)"]
    place = prompt.index(f"Problem:\n{POOL.problem}\n")
    for number, (one, mark) in enumerate(zip(shown, marks, strict=True), 1):
        line = prompt.index(f"\n{name} {number}", place)
        assert mark in prompt[line : prompt.index("\n", line + 1)]
        place = prompt.index(f":\n{one.text}\n", line)
    assert prompt.endswith(BOXED) and prompt.index(BOXED) > place
    assert "Attempt" not in prompt


def test_a_prompt_of_one_candidate_asks_to_go_on(tokenizer):
    settings = Settings(candidates=1, answer_format="Answer in <answer> tags.")
    prompt = build_prompt("p", [candidate("<think>a", tokenizer, settings)], settings)
    assert "Attempt (unfinished; its reasoning so far):\na\n" in prompt
    assert prompt.endswith("Answer in <answer> tags.") and "andidate" not in prompt


def test_an_own_template(tokenizer, tmp_path):
    file = tmp_path / "p.jinja"
    file.write_text("{{ problem }}|{% for c in candidates %}{{ c.text }};{% endfor %}")
    settings = Settings(template=str(file))
    shown = [candidate(POOL.rollouts[2], tokenizer, settings)] * 2
    assert build_prompt("p", shown, settings) == "p|third;third;"
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        build_prompt("p", shown, Settings(template="nowhere"))


def test_examples_learn_the_teachers_aggregation_only(tokenizer):
    made = examples(POOL, tokenizer, Settings(tail=20))
    assert [conversation[-1]["content"] for conversation in made] == [
        "<think>compare</think>4",
        "<think>go on</think>4",
    ]
    first, second = (conversation[0]["content"] for conversation in made)
    assert first.index("Candidate 1:\nthird") < first.index("Candidate 2 (only the end")
    assert "Attempt (unfinished" in second
    example = chat.encode(made[0], tokenizer, chat.ChatTemplate.find())
    said = tokenizer.decode(example.ids[example.learn], keep_special=True)
    assert said == "<think>compare</think>4<|im_end|>"


def test_answers_that_came_to_no_end_are_left_out_and_counted(tokenizer, tmp_path):
    answers = ["<think>cut off", "<think>no answer</think> ", "opened before</think>4", "plain"]
    shown = [{"candidates": [0], "rollout": answer} for answer in answers]
    pool = Pool.parse({"problem": "p", "rollouts": ["a"], "aggregated": shown})
    said = [turns[-1]["content"] for turns in examples(pool, tokenizer, Settings())]
    assert said == ["<think>opened before</think>4", "plain"]
    out = tmp_path / "chat.jsonl"
    assert write_examples([pool], out, tokenizer, Settings()) == Written(examples=2, unfinished=2)


@given(st.integers(1, 6), st.integers(1, 40))
def test_a_prompt_is_bounded_by_its_candidates(tokenizer, c, tokens):
    settings = Settings(candidates=c, tail=tokens)
    long = "<think>" + "x = y + 1\n" * 400
    shown = [candidate(long, tokenizer, settings)] * c
    fixed = build_prompt("p", [dataclasses.replace(one, text="") for one in shown], settings)
    prompt = build_prompt("p", shown, settings)
    assert len(tokenizer.encode(prompt)) <= len(tokenizer.encode(fixed)) + c * (tokens + 2)


def test_from_pools_to_a_file_to_train_on(tokenizer, tmp_path):
    lines = [json.dumps(RECORD), "", json.dumps(RECORD | {"problem": "語?"})]
    (tmp_path / "pools.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with gzip.open(tmp_path / "pools.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    settings = Settings(tail=20)
    (tmp_path / "pools.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    for name in ("pools.jsonl", "pools.jsonl.gz", "pools.jsonl.zst"):
        pools = read_pools(tmp_path / name)
        assert write_examples(pools, tmp_path / "chat.jsonl", tokenizer, settings) == (4, 0)
        chats = (tmp_path / "chat.jsonl").read_text(encoding="utf-8").splitlines()
        first = json.loads(chats[0])["messages"]
        assert first == list(examples(POOL, tokenizer, settings)[0])
        assert "Problem:\n語?" in json.loads(chats[2])["messages"][0]["content"]


# --- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(("candidates", "hybrid"), [(1, False), (2, False), (2, True)])
def test_pools_become_tasks_that_a_stage_of_rl_reads(tokenizer, tmp_path, candidates, hybrid):
    lines = [RECORD | {"answer": 12}, RECORD, RECORD | {"answer": "x", "verifier": "exact"}]
    (tmp_path / "pools.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = Settings(candidates=candidates, hybrid=hybrid)
    out = tmp_path / "tasks.jsonl"
    written = write_tasks(read_pools(tmp_path / "pools.jsonl"), out, tokenizer, settings, seed=3)
    each = len(RECORD["rollouts"])
    assert written == (2 * each, 1)
    tasks = list(read_tasks(out))
    assert [task.verifier for task in tasks] == ["math"] * each + ["exact"] * each
    assert {task.answer for task in tasks} == {"12", "x"}
    asked = requests(Pool.parse(RECORD), tokenizer, settings, seed=3)
    assert [task.prompt for task in tasks[:each]] == [r.messages[-1]["content"] for r in asked]


def test_a_pool_is_read():
    assert Pool.parse(RECORD) == POOL
    assert Pool.parse({"problem": "p", "rollouts": ["a"]}).aggregated == ()


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ([], "a pool is a list"),
        ({"rollouts": ["a"]}, "problem is None"),
        ({"problem": "p\ud83d", "rollouts": "a"}, "problem is no Unicode text"),
        ({"problem": "p", "rollouts": "a"}, "rollouts must be a list"),
        ({"problem": "p", "rollouts": []}, "at least one"),
        ({"problem": "p", "rollouts": ["a", " "]}, r"rollouts\[1\] is ' '"),
        ({"problem": "p", "rollouts": ["a"], "aggregated": "x"}, "aggregated must be a list"),
        ({"problem": "p", "rollouts": ["a"], "aggregated": [1]}, r"aggregated\[0\].candidates"),
        (
            {"problem": "p", "rollouts": ["a"], "aggregated": [{"candidates": [1]}]},
            r"aggregated\[0\].candidates has 1; there are rollouts 0 to 0",
        ),
        (
            {"problem": "p", "rollouts": ["a"], "aggregated": [{"candidates": [0, 0]}]},
            "shows a rollout twice",
        ),
        (
            {"problem": "p", "rollouts": ["a"], "aggregated": [{"candidates": [0]}]},
            r"aggregated\[0\].rollout is None; it must be text",
        ),
    ],
)
def test_malformed_pools_are_named(record, told):
    with pytest.raises(ValueError, match=told):
        Pool.parse(record)


@pytest.mark.parametrize(
    ("line", "told"),
    [("{", "line 2: not JSON"), ("[" * 100_000, "line 2: not JSON"), ("{}", "line 2: problem is")],
)
def test_a_malformed_line_is_named_and_nothing_is_written(tokenizer, tmp_path, line, told):
    (tmp_path / "pools.jsonl").write_text(json.dumps(RECORD) + "\n" + line)
    out = tmp_path / "chat.jsonl"
    with pytest.raises(ValueError, match=rf"pools\.jsonl, {told}"):
        write_examples(read_pools(tmp_path / "pools.jsonl"), out, tokenizer, Settings())
    assert not out.exists()


def test_settings_and_pools_that_do_not_fit(tokenizer):
    with pytest.raises(UserError, match="tail is 0"):
        Settings(tail=0)
    with pytest.raises(UserError, match="candidates is 0"):
        Settings(candidates=0)
    with pytest.raises(ValueError, match="a prompt of 5 candidates needs as many .* there are 4"):
        requests(POOL, tokenizer, Settings(candidates=5), seed=0)
    with pytest.raises(ValueError, match="at least one candidate"):
        build_prompt("p", [], Settings())
