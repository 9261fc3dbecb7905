"""Verifiable rewards: what is right, what is wrong, and verifiers that misbehave."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from zaya_jax.errors import UserError
from zaya_jax.rl.advantages import maxrl
from zaya_jax.rl.dynamic_sampling import informative
from zaya_jax.rl.rewards import exact, math_verify, reasoning_gym
from zaya_jax.rl.rewards.interface import VERIFIERS, Submission, Task
from zaya_jax.rl.rewards.score import Scorer
from zaya_jax.rl.rewards.tasks import read_tasks

ODD = "tests.answers.verifiers:score"


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(Path(__file__).parents[2]))
    yield
    sys.path.pop(0)


# --- Scoring ---------------------------------------------------------------------------------


def test_a_verifier_that_misbehaves_costs_its_own_sample_and_is_counted():
    responses = ["4", "5", "raise", "hang", "die", "nan", "two", "minus", "none", "word", "4"]
    with Scorer(processes=2, seconds=1.0) as scorer:
        scores = scorer.score([ODD] * len(responses), [Submission(r, "4") for r in responses])
    assert scores.rewards[[0, 1, 10]].tolist() == [1, 0, 1]
    assert np.isnan(scores.rewards[2:10]).all()
    assert scores.failures == {
        "raised": 1,
        "timeout": 1,
        "died": 1,
        "not_a_number": 3,
        "out_of_range": 2,
    }
    assert scores.messages["raised"] == f"{ODD}: ValueError: no such thing"
    # The rollouts that are left are a group of three, and learn from each other.
    group = scores.rewards[None]
    assert informative(group).tolist() == [True]
    assert maxrl(group)[0, [0, 1, 10]] == pytest.approx([0.5, -1, 0.5])
    assert not maxrl(group)[0, 2:10].any()


def test_verifiers_may_be_mixed():
    right = Submission("Final answer: 1/2", "0.5")
    with Scorer(processes=1) as scorer:
        scores = scorer.score([ODD, "exact", ODD], [Submission("4", "4"), right, right])
    assert scores.rewards[:2].tolist() == [1, 1] and scores.rewards[2] == 0


@pytest.mark.parametrize(
    ("verifier", "words"),
    [
        ("maths", "did you mean math"),
        ("tests.answers.verifiers:nothing", "no 'nothing'"),
        ("no.such.module:f", "no module"),
    ],
)
def test_unknown_verifiers_are_told(verifier, words):
    with Scorer() as scorer, pytest.raises(UserError, match=words):
        scorer.score([verifier], [Submission("", "")])


def test_an_exact_answer():
    assert exact.verify(Submission("<think>7</think><answer>8</answer>", "8.0")) == 1
    assert exact.verify(Submission("<answer>7</answer>", "8")) == 0
    assert exact.verify(Submission("so \\boxed{8}", "8", thinking=True)) == 0
    with pytest.raises(UserError, match="no answer"):
        exact.verify(Submission("8", " "))


def test_what_is_in_the_table_is_there():
    for place in VERIFIERS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


# --- Tasks from files ------------------------------------------------------------------------


def write(path: Path, *rows) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_tasks_are_read(tmp_path):
    path = write(
        tmp_path / "aime.jsonl",
        {"prompt": "1+1?", "answer": 2},
        "",
        {"prompt": "p", "answer": "a", "verifier": "exact", "source": "s", "name": "n",
         "metadata": {"k": 1}},
    )  # fmt: skip
    assert list(read_tasks(path, "math")) == [
        Task("1+1?", "2", "math", "aime.jsonl", "1"),
        Task("p", "a", "exact", "s", "n", {"k": 1}),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": "2"}, "prompt must be text, and there is none"),
        ({"prompt": " ", "answer": "2"}, "prompt must be text, and it is ' '"),
        ({"prompt": ["x"], "answer": "2"}, "prompt must be text"),
        ({"prompt": "x"}, "answer must be text, and there is none"),
        ({"prompt": "x", "answer": None}, "answer must be text"),
        ({"prompt": "x", "answer": True}, "answer must be text"),
        ({"prompt": "x", "answer": "2", "verifier": "maths"}, "did you mean math"),
        ({"prompt": "x", "answer": "2", "metadata": 3}, "metadata is a int"),
        ("[]", "a list; expected an object"),
        ("{", "not JSON"),
    ],
)
def test_rows_that_are_no_tasks_are_told_with_their_line(tmp_path, row, words):
    path = write(tmp_path / "t.jsonl", {"prompt": "x", "answer": "2"}, row)
    with pytest.raises(UserError, match=rf"t\.jsonl, line 2: .*{words}"):
        list(read_tasks(path, "math"))


def test_a_row_without_a_verifier_is_told(tmp_path):
    path = write(tmp_path / "t.jsonl", {"prompt": "x", "answer": "2"})
    with pytest.raises(UserError, match="line 1: no verifier"):
        list(read_tasks(path))


# --- The libraries ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def countdown():
    pytest.importorskip("reasoning_gym")
    return reasoning_gym.Environment("simple_equations", seed=3)


def test_puzzles_come_by_number_and_score_their_own_answers(countdown):
    again = reasoning_gym.Environment("simple_equations", seed=3)
    for number in (0, 5, 100_000):
        task = countdown.task(number)
        assert task == again.task(number) and task.source == "simple_equations"
        assert "<answer>" in task.prompt and task.prompt != countdown.task(number + 1).prompt

        def score(response, task=task):
            return reasoning_gym.verify(Submission(response, task.answer, task.metadata))

        assert score(f"<think>hm</think><answer>{task.answer}</answer>") == 1
        assert score(f"Final answer: {task.answer}") == 1
        assert score(task.answer) == 0  # not in the form that was asked for
        assert score(f"<answer>-{task.answer}</answer>") == 0
        assert score("") == 0


def test_there_is_no_partial_credit(countdown):
    """The library pays up to 0.3 for a wrong number that has digits of the right one."""
    task = countdown.task(0)
    wrong = f"-98765{task.answer}4321"
    data = reasoning_gym._dataset("simple_equations", "{}", 0, 1)
    assert data.score_answer(wrong, task.metadata["entry"]) > 0
    response = f"<answer>{wrong}</answer>"
    assert reasoning_gym.verify(Submission(response, task.answer, task.metadata)) == 0


def test_an_environment_without_an_answer_is_told():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match="'rush_hour' gives no answer"):
        reasoning_gym.Environment("rush_hour", size=4).task(0)


def test_unknown_environments_and_parameters_are_told():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match="did you mean countdown"):
        reasoning_gym.Environment("count_down")
    with pytest.raises(UserError, match="refuses its parameters"):
        reasoning_gym.Environment("countdown", min_numbers=-5)


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        (r"\boxed{2(x+1)}", "2x+2", 1),
        (r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}", 1),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}", 1),
        (r"\boxed{0.5}", r"$\frac{1}{2}$", 1),
        (r"\boxed{13} no \boxed{12}", "12", 1),
        (r"\boxed{3}", "4", 0),
        (r"3", "3", 0),
        (r"<think>\boxed{3}</think>no idea", "3", 0),
        (r"\boxed{}", "3", 0),
    ],
)
def test_mathematics_is_compared_by_algebra(response, answer, reward):
    pytest.importorskip("math_verify")
    assert math_verify.verify(Submission(response, answer)) == reward


def test_a_task_whose_answer_is_no_mathematics_is_told():
    pytest.importorskip("math_verify")
    with pytest.raises(UserError, match="is no mathematics"):
        math_verify.verify(Submission(r"\boxed{3}", ""))


def test_both_libraries_work_in_processes(countdown):
    pytest.importorskip("math_verify")
    task = countdown.task(1)
    submissions = [
        Submission(f"<answer>{task.answer}</answer>", task.answer, task.metadata),
        Submission(r"\boxed{x^2-1}", "(x-1)(x+1)"),
    ]
    with Scorer(processes=1, seconds=20) as scorer:
        scores = scorer.score(["reasoning_gym", "math"], submissions)
    assert scores.rewards.tolist() == [1, 1] and not scores.failures, scores.messages
    assert not math.isnan(scores.rewards.sum())


@pytest.mark.parametrize(
    ("library", "call", "words"),
    [
        ("math_verify", lambda: math_verify.verify(Submission("", "1")), "needs math-verify"),
        (
            "reasoning_gym",
            lambda: reasoning_gym.Environment("countdown", seed=99),
            "reasoning-gym is not installed",
        ),
    ],
)
def test_without_the_extra_one_is_told_what_to_install(monkeypatch, library, call, words):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"{words}.*requirements-rl.txt"):
        call()


@pytest.mark.parametrize(
    ("environment", "answer", "passes"),
    [
        ("spiral_matrix", "[[1, 2], [3, 4]]", True),
        ("spiral_matrix", "1 2 3 4", True),
        ("string_insertion", "['A', 'B']", True),
        ("string_insertion", "__import__('os').system('x')", False),
        ("n_queens", "[x for x in open(chr(47))]", False),
        ("countdown", "94*4 - 61 - 6", True),
        ("countdown", "exec(chr(49))", False),
        ("countdown", "S.__class__", False),
        ("simple_integration", "3*x**2/2 + sin(x) + C", True),
        ("simple_integration", "x" * 3000, False),
        ("chain_sum", "anything (is) compared", True),
    ],
)
def test_what_a_scorer_evaluates_can_call_nothing(environment, answer, passes):
    assert reasoning_gym.is_harmless(environment, answer) is passes


def test_every_scorer_that_evaluates_answers_is_known():
    """A new release may add some: then they have to be named."""
    import inspect
    import re

    factory = pytest.importorskip("reasoning_gym.factory")
    known = {*reasoning_gym.EVALUATED, *reasoning_gym.PARSED}
    for name, (environment, _) in factory.DATASETS.items():
        source = inspect.getsource(environment)
        own = re.findall(r"(?:eval|exec|parse_expr|sympify)\((?:answer|str\(answer|text)", source)
        assert not own or name in known, f"{name} evaluates answers"
