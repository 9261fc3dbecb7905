"""rlve-gym: tasks by difficulty, verdicts, and nothing of it in the process that trains."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zaya_jax.errors import UserError
from zaya_jax.rl.curriculum import schedule
from zaya_jax.rl.environments import rlve
from zaya_jax.rl.environments.rlve import Maker, Question
from zaya_jax.rl.rewards.interface import Submission
from zaya_jax.rl.rewards.score import Scorer

pytest.importorskip("networkx", reason="pip install -r requirements-rl.txt")
NAMES = ("Sorting", "Multiplication", "GCDOne_Counting", "AdditionTable", "CountdownEqual")


@pytest.fixture(scope="module")
def maker():
    with Maker(processes=1) as maker:
        yield maker


def score(task, answer: str) -> float:
    return rlve.verify(Submission(f"<think>x</think><answer>{answer}</answer>", "", task.metadata))


def test_right_answers_score_and_wrong_ones_do_not(maker):
    questions = [Question(name, d, seed) for name in NAMES[:4] for d in (0, 3) for seed in (1, 2)]
    made = maker.tasks(questions)
    assert None not in made and len({task.prompt for task in made}) == len(made)
    submissions = [
        Submission(f"Well.</think> <answer>{answer}</answer>", task.answer, task.metadata)
        for task in made
        for answer in (task.answer, "7 7 7 7", "", "nonsense")
    ] + [Submission(task.answer, task.answer, task.metadata) for task in made]
    with Scorer(processes=1) as scorer:
        rewards = scorer.score([made[0].verifier] * len(submissions), submissions).rewards
    by_task = rewards[: 4 * len(made)].reshape(-1, 4)
    assert (by_task == [1, 0, 0, 0]).all()
    assert (rewards[4 * len(made) :] == 0).all()  # no tags


def test_a_task_is_named_by_its_question_and_harder_with_difficulty(maker):
    same = [Question("Sorting", 2, 9)] * 2
    first, second = maker.tasks(same)
    assert first == second and first.source == "rlve/Sorting" and first.name == "2-9"
    hard = maker.tasks([Question("Sorting", d, 9) for d in (0, 4, 8)])
    lengths = [len(task.answer.split()) for task in hard]
    assert lengths == sorted(lengths) and lengths[0] < lengths[2]


def test_the_curriculum_asks_for_tasks(maker):
    curriculum = schedule.start({"Sorting": 1, "Multiplication": 0}, seed=4)
    asked = []
    for _ in range(6):
        draw, curriculum = schedule.draw(curriculum)
        asked.append(Question(draw.environment, draw.difficulty, draw.number))
    made = maker.tasks(asked)
    assert [(t.metadata["environment"], t.metadata["difficulty"]) for t in made] == [
        question[:2] for question in asked
    ]


def test_mistakes_are_told(maker):
    with pytest.raises(UserError, match="did you mean Sorting"):
        maker.tasks([Question("Sortin", 0, 0)])
    with pytest.raises(UserError, match="below 0"):
        maker.tasks([Question("Sorting", -1, 0)])


def test_a_power_that_takes_for_ever_is_no_answer(maker):
    (task,) = maker.tasks([Question("CountdownEqual", 0, 0)])
    assert score(task, "9**9**9**9") == score(task, "9* *9**9") == 0


def test_nothing_of_it_is_left_in_the_process_that_trains():
    code = """
import random, sys
import numpy as np
from zaya_jax.rl.environments.rlve import Maker, Question
random.seed(1); np.random.seed(1)
before = random.getstate(), np.random.get_state()[1].tolist()
with Maker(processes=1) as maker:
    assert maker.tasks([Question("Sorting", 0, 0)])[0] is not None
assert before == (random.getstate(), np.random.get_state()[1].tolist())
assert not {"Gym", "torch", "jax"} & set(sys.modules), "imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_all_environments_make_tasks_and_know_their_answers():
    names = rlve.names()
    assert len(names) == 400
    with Maker(processes=2, seconds=30) as maker, Scorer(processes=2, seconds=30) as scorer:
        made = [task for task in maker.tasks([Question(n, 0, 0) for n in names]) if task]
        assert len(made) >= 390
        known = [task for task in made if task.answer != "judged by the environment"]
        assert len(known) >= 320
        submissions = [
            Submission(f"<answer>{task.answer}</answer>", task.answer, task.metadata)
            for task in known
        ]
        rewards = scorer.score([known[0].verifier] * len(known), submissions).rewards
    assert (rewards == 1).mean() > 0.98
