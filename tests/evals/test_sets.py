"""Sets by name, multiple choice, mathematics, and training data that holds an evaluation prompt."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.evals import choices, contamination, sets
from zaya_jax.rl.rewards.interface import Submission


def jsonl(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


MMLU = {"question_id": 3, "question": "2 + 2?", "options": ["3", "4", "5"], "answer": "B"}
GPQA = {"Question": "2 + 2?", "Correct Answer": "4", "Incorrect Answer 1": "1",
        "Incorrect Answer 2": "2", "Incorrect Answer 3": "3"}  # fmt: skip


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{(B)}}", "B"),
        ("\\boxed{B. four}", "B"),
        ("<answer>B</answer>", "B"),
        ("<answer>(B) 4</answer>", "B"),
        ("The answer is (B).", "B"),
        ("The answer is **B**.", "B"),
        ("So A is wrong.\nAnswer: B", "B"),
        ("It is A or B", "B"),
        ("<think>The answer is (A)</think> The answer is (B)", "B"),
        ("<think>The answer is (B)", None),
        ("The answer is (A)... no, \\boxed{B}", "B"),
        ("\\boxed{12}", None),
        ("\\boxed{Because}", None),
        ("four", None),
        ("", None),
    ],
)
def test_the_letter_in_a_response(response, letter):
    assert choices.letter(response) == letter


@given(st.text("ABJKanswer is()Answer:\n *.", max_size=40))
def test_the_published_rules_are_kept(text):
    """Against the three patterns of the published scorer, written as it has them."""
    import re

    plain = text.replace("**", "")
    expected = None
    for pattern, flags in (
        (r"answer is \(?([A-J])\)?", 0),
        (r".*[aA]nswer:\s*([A-J])", 0),
        (r"(\b[A-J]\b)(?!.*\b[A-J]\b)", re.DOTALL),
    ):
        if found := re.search(pattern, plain, flags):
            expected = found[1]
            break
    assert choices.published_letter(text) == expected


def test_mmlu_pro(tmp_path):
    (task,) = sets.load("mmlu_pro:" + jsonl(tmp_path / "m", MMLU))
    assert "B. 4" in task.prompt and task.answer == "B" and task.name == "3"
    assert choices.verify(Submission("\\boxed{B}", task.answer)) == 1
    assert choices.verify(Submission("\\boxed{C}", task.answer)) == 0
    index = {k: v for k, v in MMLU.items() if k != "answer"} | {"answer_index": 2}
    filled = MMLU | {"options": ["3", "4", "N/A", "N/A"]}
    assert sets.load("mmlu_pro:" + jsonl(tmp_path / "m", index))[0].answer == "C"
    assert "N/A" not in sets.load("mmlu_pro:" + jsonl(tmp_path / "m", filled))[0].prompt
    many = [str(i) for i in range(11)]
    for change in ({"answer": "D"}, {"answer": "b"}, {"answer": "BC"}, {"answer_index": True},
                   {"answer_index": -1}, {"options": ["4"]}, {"options": many}):  # fmt: skip
        with pytest.raises(UserError, match="line 1: "):
            sets.load("mmlu_pro:" + jsonl(tmp_path / "m", MMLU | change))


def test_gpqa_shuffles_every_question_by_itself(tmp_path):
    rows = [GPQA | {"Question": f"{i}?", "Record ID": f"r{i}"} for i in range(40)]
    tasks = sets.load("gpqa:" + jsonl(tmp_path / "g", *rows))
    assert {task.answer for task in tasks} == set("ABCD")
    for task in tasks:
        assert f"{task.answer}. 4" in task.prompt
    backwards = sets.load("gpqa:" + jsonl(tmp_path / "g", *rows[::-1]))
    assert backwards[::-1] == tasks
    with pytest.raises(UserError, match="no Incorrect Answer 3"):
        sets.load("gpqa:" + jsonl(tmp_path / "g", GPQA | {"Incorrect Answer 3": None}))


def test_mathematics(tmp_path):
    path = tmp_path / "aime.jsonl"
    spec = "math:" + jsonl(path, {"id": "I-1", "problem": "1+1?", "answer": 2},
                           {"question": "2+2?", "expected_answer": "$4$"})  # fmt: skip
    first, second = sets.load(spec)
    assert (first.name, first.answer, first.verifier, first.source) == ("I-1", "2", "math", "aime")
    assert (second.name, second.answer) == ("2", "$4$")
    assert first.prompt.startswith("1+1?") and "\\boxed{}" in first.prompt


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpqua:x", "did you mean gpqa"),
        ("gpqa", "wants GPQA's rows as JSONL behind"),
        ("gpqa:", "wants GPQA's rows"),
        ("gpqa:missing.jsonl", "No such file|no such file"),
        ("tasks:missing.jsonl", "No such file|no such file"),
    ],
)
def test_specs_that_name_nothing(spec, message):
    with pytest.raises(UserError, match=message):
        sets.load(spec)


@pytest.mark.slow
def test_environments_make_sets_of_their_own():
    pytest.importorskip("networkx", reason="pip install -r requirements-rl.txt")
    tasks = sets.load("rlve:Sorting@9")
    assert len({task.prompt for task in tasks}) == len(tasks) == sets.GENERATED
    assert tasks[0].source == "rlve/Sorting" and tasks[0].name == "9-1000003"
    with pytest.raises(UserError, match="must be a number"):
        sets.load("rlve:Sorting@hard")


def test_files_that_hold_nothing_or_too_much(tmp_path):
    path = tmp_path / "m.jsonl"
    row = {"id": 1, "problem": "x", "answer": "1"}
    for text, message in (
        ("", "is empty"),
        ("[]", "line 1: a list"),
        ("{", "line 1: not JSON"),
        (json.dumps(row) + "\n" + json.dumps(row), "two tasks named '1'"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            sets.load(f"math:{path}")


LONG = "Let ABC be a triangle whose sides have lengths 13 14 and 15; find the radius of its circle."
EVALUATION = {"long": LONG, "short": "What is 7 + 8?", "other": LONG.replace("13 14 and 15", "odd")}


def names(training, evaluation=EVALUATION) -> set[str]:
    return {each.name for each in contamination.overlaps(training, evaluation)}


def test_prompts_in_the_training_data_are_found():
    assert names(["Nothing here.", f"Solve: {LONG.upper()} Answer: 4"]) == {"long"}
    assert names(["q: what is 7+8 ?"]) == {"short"}
    assert names(["What is 7 + 9?", "8 + 7 is what", ""]) == set()
    found = contamination.overlaps(["x", LONG], EVALUATION)
    assert found == [contamination.Overlap("long", 1.0, True, 1)]


def test_a_prompt_with_few_words_changed_is_found_and_its_form_is_not():
    words = [f"w{i}" for i in range(60)]
    evaluation = {"a": " ".join(words)}
    changed = words[:50] + ["new"] * 10
    (found,) = contamination.overlaps([" ".join(changed)], evaluation)
    assert not found.exact and found.share == pytest.approx(38 / 48)
    assert contamination.overlaps([" ".join(words[:20])], evaluation) == []
    form = "Answer the following question and give the final answer in a box at the very end of it"
    many = {f"q{i}": f"{form} {' '.join(f'x{i}y{j}' for j in range(20))}" for i in range(60)}
    assert contamination.overlaps([form + " what is this"], many) == []
    assert [each.name for each in contamination.overlaps([many["q7"]], many)] == ["q7"]


@given(st.lists(st.text("ab c.", max_size=30), max_size=4), st.text("ab c.", max_size=30))
def test_a_prompt_is_always_found_in_itself(training, prompt):
    found = names([*training, prompt], {"p": prompt})
    assert found == ({"p"} if contamination.words(prompt) else set())


def test_an_overlap_is_refused_unless_forced(tmp_path):
    path = tmp_path / "train.jsonl"
    chat = {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "4"}]}
    path.write_text(json.dumps(chat) + "\nplain text\n{broken\n")
    with pytest.raises(UserError, match="1 of 3 prompts of aime are in the training data.*'long'"):
        contamination.check(contamination.texts(path), EVALUATION, what="aime")
    forced = contamination.check(contamination.texts(path), EVALUATION, force=True)
    assert [each.name for each in forced] == ["long"]
    assert contamination.check(["clean"], EVALUATION) == []
    with pytest.raises(UserError, match="training data"):
        list(contamination.texts(tmp_path / "missing"))
