"""Every environment both ways: what is right scores 1, what is wrong 0, whatever it tries."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zaya_jax.errors import UserError
from zaya_jax.rl.environments import build, falsification, generate, standard
from zaya_jax.rl.environments.seeds import Seed, Test
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.rl.rewards.tasks import read_tasks
from zaya_jax.sandbox import judge

DOUBLE = Seed(
    name="double",
    statement="Double a number.",
    entry="f",
    tests=(Test([1], 2), Test([-3], -6), Test([5], 10)),
    accepted=("def f(x): return 2 * x", "def f(x): return x + x"),
    rejected=("def f(x): return x * x + 1 if x == 5 else 2 * x",),
    schema=({"type": "int", "min": -9, "max": 9},),
)
PRINTED = Seed(
    name="printed",
    statement="Read two numbers, print them in order of size, one a line.",
    entry=None,
    tests=(Test("2 1\n", "1\n2\n"), Test("3 4\n", "3\n4\n")),
    accepted=("a, b = sorted(map(int, input().split()))\nprint(a)\nprint(b)",),
    rejected=("a, b = sorted(input().split())\nprint(a)\nprint(b)\nprint()\nassert a != '1'",),
    validator="a, b = map(int, input().split())\nassert 0 <= a < 100 and 0 <= b < 100",
)


def the_task(seed: Seed, environment: str) -> Task:
    (task, *_) = build.ENVIRONMENTS[environment](seed, np.random.default_rng(0))
    # to a file and back, as a run gets it
    return Task(**json.loads(json.dumps(dataclasses.asdict(task))))


def score(task: Task, response: str, **changes) -> float:
    module, name = task.verifier.split(":")
    verify = getattr(importlib.import_module(module), name)
    return verify(Submission(response, task.answer, task.metadata, **changes))


def scores(task: Task, responses) -> list[float]:
    return [score(task, response) for response in responses]


def both_ways(seed: Seed) -> Counter:
    """Scores of right and wrong answers to all tasks of a seed, by environment and kind."""
    found: Counter = Counter()
    for name in build.ENVIRONMENTS:
        for task in build.ENVIRONMENTS[name](seed, np.random.default_rng(0)):
            found[name, "right", score(task, task.answer)] += 1
            if name in ("code", "codearc"):
                for program in seed.accepted[1:]:
                    found[name, "right", score(task, standard.fenced(program))] += 1
                for program in seed.rejected[:1] if name == "code" else ():
                    found[name, "wrong", score(task, standard.fenced(program))] += 1
                blank = "def solve(x): return None" if seed.entry else "print()"
                found[name, "wrong", score(task, standard.fenced(blank))] += 1
            elif name == "falsification":
                harmless = agreeing_input(seed, task.metadata["program"])
                if harmless is not None:
                    found[name, "wrong", score(task, f"<answer>{harmless}</answer>")] += 1
                invalid = "[99]" if seed.entry else "1\n99"
                found[name, "wrong", score(task, f"<answer>{invalid}</answer>")] += 1
            else:
                wrong = "[7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]"
                found[name, "wrong", score(task, f"<answer>{wrong}</answer>")] += 1
    return found


def agreeing_input(seed: Seed, program: str) -> str | None:
    """An input of the tests on which a wrong program is right."""
    inputs = [test.input for test in seed.tests]
    for test, outcome in zip(seed.tests, seed.run_all([program], inputs)[0], strict=True):
        if not falsification.is_wrong(seed.entry, outcome, test.output):
            return test.input if seed.entry is None else ", ".join(map(repr, test.input))
    return None


def assert_both_ways(found: Counter) -> None:
    for (name, kind, reward), count in found.items():
        assert reward == {"right": 1.0, "wrong": 0.0}[kind], (name, kind, count)


def test_right_answers_score_and_wrong_ones_do_not(few):
    found = both_ways(few[0])
    assert_both_ways(found)
    assert {(name, kind) for name, kind, _ in found} == {
        (name, kind) for name in build.ENVIRONMENTS for kind in ("right", "wrong")
    }


@pytest.mark.slow
def test_sixty_problems_both_ways():
    with ThreadPoolExecutor(2) as pool:
        found = sum(pool.map(both_ways, generate.seeds(60, seed=3)), Counter())
    assert_both_ways(found)
    assert found["code", "right", 1.0] == 120 and found["code", "wrong", 0.0] == 120
    assert found["codeio_output", "right", 1.0] == found["codeio_input", "right", 1.0] == 60
    assert found["codearc", "right", 1.0] == 80  # of 40 functions
    assert found["falsification", "right", 1.0] > 100  # every bug that was planted is found


def test_a_program_must_pass_all_tests():
    task = the_task(DOUBLE, "code")
    assert "`f(1) == 2`" in task.prompt and "an integer from -9 to 9" in task.prompt
    good = standard.fenced("def f(x):\n    return x << 1")
    assert (
        scores(
            task,
            [
                good,
                f"<think>{good}</think>{good}",
                f"<think>{good}</think>It doubles.",
                f"<think>{good}",
                standard.fenced(DOUBLE.rejected[0]),
                "def f(x): return 2 * x",  # no block
                "```python\ndef f(x): return 2 * x",  # cut off
                standard.fenced("def g(x): return 2 * x"),
                standard.fenced("def f(x):\n    while True: pass"),
                standard.fenced("import os\nos._exit(0)"),
                "",
            ],
        )
        == [1, 1] + [0] * 9
    )
    assert score(task, good, thinking=True) == 0
    cheat = "class E(int):\n    def __eq__(self, o): return True\ndef f(x): return E(0)"
    assert score(task, standard.fenced(cheat)) == 0


def test_printed_output_is_compared_but_for_spaces_at_ends():
    task = the_task(PRINTED, "code")
    program = "a, b = sorted(map(int, input().split()))\nprint({}, end='')"
    assert score(task, standard.fenced(program.format("f'{a}  \\n{b}\\n\\n'"))) == 1
    assert score(task, standard.fenced(program.format("f'{a} {b}'"))) == 0


def test_predicted_outputs():
    task = the_task(DOUBLE, "codeio_output")
    gold = task.metadata["output"]
    texts = [f"<answer>{gold}</answer>", f"Final answer: {gold}", f"<answer>`{gold}`</answer>"]
    assert scores(task, texts) == [1, 1, 1]
    wrong = [f"{gold}", f"<answer>'{gold}'</answer>", f"<answer>[{gold}]</answer>",
             "<answer>__import__('os')</answer>", f"<answer>{gold}; {gold}</answer>",
             "<answer>" + "[" * 5000 + "</answer>", "<answer>" + "9" * 20_000 + "</answer>",
             "<answer></answer>"]  # fmt: skip
    assert scores(task, wrong) == [0] * len(wrong)
    task = the_task(PRINTED, "codeio_output")
    gold = task.metadata["output"]
    assert scores(task, [f"<answer>\n{gold}\n</answer>", f"<answer>```\n{gold}```</answer>"]) == [
        1,
        1,
    ]
    assert score(task, f"<answer>{gold} 7</answer>") == 0


def test_any_input_with_the_output_is_right():
    seed = dataclasses.replace(
        DOUBLE, accepted=("def f(x): return x * x",), tests=(Test([3], 9),), rejected=()
    )
    task = the_task(seed, "codeio_input")
    assert scores(task, ["<answer>3</answer>", "<answer>-3</answer>"]) == [1, 1]
    wrong = ["4", "3.0", "True", "3, 3", "[3]", "-3 * -1", "x", "", "f(3)", "30"]
    assert scores(task, [f"<answer>{text}</answer>" for text in wrong]) == [0] * len(wrong)
    task = the_task(PRINTED, "codeio_input")
    low, high = task.metadata["output"].split()
    assert scores(task, [f"<answer>{high} {low}</answer>", f"<answer>{low} {high}</answer>"]) == [
        1,
        1,
    ]
    assert score(task, f"<answer>{low} 1{high}</answer>") == 0


def test_an_input_that_an_answer_cannot_hold_is_not_asked_for():
    blank = dataclasses.replace(
        PRINTED,
        tests=(Test("2 1\n\n", "1\n2\n"), Test("7 3\n", "3\n7\n"), Test(" 5 4", "4\n5\n")),
    )
    for draw in range(5):
        (task,) = build.ENVIRONMENTS["codeio_input"](blank, np.random.default_rng(draw))
        assert task.answer == "<answer>7 3\n</answer>" and score(task, task.answer) == 1
    only = dataclasses.replace(blank, tests=blank.tests[:1])
    assert not list(build.ENVIRONMENTS["codeio_input"](only, np.random.default_rng(0)))


def test_reconstruction_is_tried_on_inputs_that_were_not_shown():
    task = the_task(dataclasses.replace(DOUBLE, entry="f"), "codearc")
    shown = [line for line in task.prompt.splitlines() if line.startswith("`f(")]
    table = "{" + ", ".join(line[3:-1].replace(") ==", ":") for line in shown) + "}"
    learnt_by_heart = f"def f(x): return {table}.get(x, 0)"
    assert score(task, standard.fenced("def f(x): return x + x")) == 1
    assert score(task, standard.fenced(learnt_by_heart)) == 0
    assert "return" not in task.prompt


def test_falsification_wants_a_valid_input_that_shows_the_bug():
    task = the_task(DOUBLE, "falsification")
    assert task.answer == "<answer>5</answer>"
    wrong = ["4", "500", "5.0", "'5'", "five", "5, 5"]
    assert score(task, "<answer>5</answer>") == 1
    assert scores(task, [f"<answer>{text}</answer>" for text in wrong]) == [0] * len(wrong)
    task = the_task(PRINTED, "falsification")
    assert scores(task, ["<answer>10 9</answer>", "<answer>1 2</answer>"]) == [1, 1]
    assert scores(task, ["<answer>3 4</answer>", "<answer>100 9</answer>"]) == [0, 0]


def test_falsification_counts_no_slowness_and_no_doubt_about_the_truth(monkeypatch):
    monkeypatch.setattr(falsification, "TRIES", 0)
    monkeypatch.setattr(falsification, "LIMITS", judge.PerTest(seconds=0.5))
    slow = dataclasses.replace(
        DOUBLE, rejected=("def f(x):\n    while x == 4: pass\n    return 2 * x + (x == 5)",)
    )
    task = the_task(slow, "falsification")
    assert scores(task, ["<answer>5</answer>", "<answer>4</answer>"]) == [1, 0]
    task.metadata["trusted"].append("def f(x): return 2 * x + (x == 5)")
    assert score(task, "<answer>5</answer>") == 0


def test_what_cannot_be_asked_of_a_seed_is_not_asked():
    bare = dataclasses.replace(DOUBLE, schema=None)
    made = [name for name in build.ENVIRONMENTS
            if list(build.ENVIRONMENTS[name](bare, np.random.default_rng(0)))]  # fmt: skip
    assert made == ["code", "codeio_output"]
    right = dataclasses.replace(DOUBLE, rejected=DOUBLE.accepted)
    assert not list(falsification.tasks(right, np.random.default_rng(0)))
    one = dataclasses.replace(DOUBLE, schema=({"type": "int", "min": 1, "max": 5},))
    assert not list(build.ENVIRONMENTS["codearc"](one, np.random.default_rng(0)))


def test_tasks_are_written_as_a_run_reads_them_and_false_seeds_left_out(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(build, "LIMITS", judge.PerTest(seconds=0.5))
    false = dataclasses.replace(DOUBLE, name="false", accepted=("def f(x): return x",))
    hangs = dataclasses.replace(
        PRINTED, name="hangs", validator="while True: pass", tests=PRINTED.tests[:1]
    )
    made = build.tasks([DOUBLE, false, hangs], ["code", "codeio_output"], seed=1)
    counts = build.write(made, tmp_path / "tasks.jsonl")
    assert counts == {"code": 1, "codeio_output": 1}
    told = capsys.readouterr().err
    assert "seed 'false' is left out: accepted[0] fails tests[0] (ok, 1)" in told
    assert "seed 'hangs' is left out: tests[0].input is not valid" in told
    tasks = list(read_tasks(tmp_path / "tasks.jsonl"))
    assert [score(task, task.answer) for task in tasks] == [1, 1]
    with pytest.raises(UserError, match="did you mean codearc"):
        list(build.tasks([DOUBLE], ["codeark"], seed=0))


def test_a_tasks_draws_do_not_depend_on_other_seeds():
    names = ["codeio_output", "codearc"]
    alone = list(build.tasks([DOUBLE], names, seed=5))
    assert alone == list(build.tasks([PRINTED, DOUBLE], names, seed=5))[-2:]


def test_many_tests_have_one_time_together():
    limits = judge.PerTest(seconds=0.3, total=0.5)
    outcomes = judge.programs("while True: pass", ["x"] * 20, limits)
    assert [outcome.status for outcome in outcomes] == ["time"] * 20
    stop = dataclasses.replace(limits, stop=True)
    outcomes = judge.programs("assert input() == '1'", ["1", "2", "1"], stop)
    assert [outcome.status for outcome in outcomes] == ["ok", "failed", "failed"]


def test_tasks_are_made_as_one_types_it(tmp_path, capsys):
    from zaya_jax.rl.environments.__main__ import main

    out = tmp_path / "tasks.jsonl"
    assert main(["--generate=1", "--only=code,codearc", f"--out={out}"]) == 0
    assert "2 tasks in" in capsys.readouterr().out
    assert [task.source for task in read_tasks(out)] == ["code", "codearc"]
    assert main([f"--seeds={tmp_path / 'none'}", f"--out={out}"]) == 2
    assert "no such file" in capsys.readouterr().err
