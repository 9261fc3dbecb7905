"""Which task comes when, and that what is held out is never asked before."""

import json

import pytest

from experiments.rl import chain_sum
from zaya_jax.errors import UserError
from zaya_jax.rl import demonstrations
from zaya_jax.rl.questions import Questions

GYM = [(demonstrations.TASKS, 1.0)]


def test_the_experiment_asks_what_is_demonstrated():
    assert chain_sum.TASKS == demonstrations.TASKS
    assert chain_sum.get_config().rl.heldout <= demonstrations.HELDOUT


def test_a_task_is_a_function_of_seed_and_number():
    first, again, other = (Questions(GYM, heldout=4, seed=seed) for seed in (1, 1, 2))
    assert [first(n) for n in range(6)] == [again(n) for n in range(6)]
    assert [first(n) for n in range(6)] != [other(n) for n in range(6)]


def test_every_seed_is_scored_on_the_same_tasks(tmp_path):
    file = tmp_path / "tasks.jsonl"
    lines = [{"prompt": f"p{i}", "answer": "1", "verifier": "exact"} for i in range(20)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for sources in (GYM, [(str(file), 1.0)]):
        one, other = (Questions(sources, heldout=6, seed=seed) for seed in (1, 2))
        assert one.heldout == other.heldout and len(one.heldout) == 6
        more = Questions(sources, heldout=9, seed=1).heldout
        assert more[:6] == one.heldout


def test_held_out_tasks_are_not_asked(tmp_path):
    file = tmp_path / "tasks.jsonl"
    lines = [{"prompt": f"p{i % 10}", "answer": "1", "verifier": "exact"} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    questions = Questions([(str(file), 1.0)], heldout=3, seed=0)
    held = {task.prompt for task in questions.heldout}
    asked = {task.prompt for n in range(200) if (task := questions(n)) is not None}
    assert asked and not asked & held


@pytest.mark.parametrize(
    ("make", "terms"),
    [(demonstrations.chain_sum, {4}), (demonstrations.of_all_lengths, {2, 3, 4, 5, 6})],
)
def test_demonstrations_are_what_they_say_and_of_no_held_out_task(monkeypatch, make, terms):
    monkeypatch.setattr(demonstrations, "COUNT", 2000)
    held = {
        task.prompt
        for source in (demonstrations.TASKS, demonstrations.LONGER_TASKS)
        for task in Questions([(source, 1.0)], heldout=demonstrations.HELDOUT, seed=3).heldout
    }
    chats = list(make())
    prompts = [chat.messages[0]["content"] for chat in chats]
    assert len(set(prompts)) == len(prompts) > 1700 and not set(prompts) & held
    assert {len(prompts_expression(prompt).split()[::2]) for prompt in prompts} == terms
    worked = 0
    for chat in chats:
        said = chat.messages[1]
        expression = prompts_expression(chat.messages[0]["content"])
        total = eval(expression)  # noqa: S307  # of our own
        if "reasoning_content" not in said:
            total = eval(expression.replace("-", "+"))  # noqa: S307
        assert said["content"] == f"<answer>{total}</answer>"
        if "reasoning_content" in said:
            worked += 1
            assert {eval(part) for part in said["reasoning_content"].split(" = ")} == {total}  # noqa: S307
    assert 0.35 < worked / len(chats) < 0.45


def prompts_expression(prompt: str) -> str:
    return prompt.split("problem: ")[1].split(" =")[0]


@pytest.mark.parametrize("expression", ["", "4 *", "4 * 3", "4 + x", "4 + + 3"])
def test_what_is_no_sum_is_refused(expression):
    with pytest.raises(UserError, match="is no sum"):
        demonstrations.worked_out(expression)
