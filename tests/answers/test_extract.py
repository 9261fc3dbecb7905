"""Answers in what a model wrote, and which of them are the same."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.answers import FORMATS, KINDS, canonical, cluster, equivalent, extract, final_text
from zaya_jax.answers.extract import THINK
from zaya_jax.data import messages
from zaya_jax.data.aggregate import BOXED
from zaya_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{42}.", "42"),
        (r"\boxed{13}, no, wait: \boxed{12}", "12"),
        (r"\boxed{\frac{1}{2}} and \boxed{cut off", r"\frac{1}{2}"),
        (r"<think>\boxed{1}</think>It is \boxed{2}", "2"),
        (r"<think>a</think>\boxed{1}</think>\boxed{2}", "2"),
        (r"<think>\boxed{1}</think>I do not know", None),
        (r"<think>so \boxed{1}", None),
        (r"\boxed{\text{a set } \{1, 2\}}", r"\text{a set } \{1, 2\}"),
        (r"a stray } and \boxed {7}", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed 9.", "9"),
        (r"\boxed{}", None),
        ("no box", None),
        ("", None),
    ],
)
def test_boxes(text, answer):
    assert extract(text, "boxed") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>7</answer>", "7"),
        ("<answer>7</answer> no, <answer>\n8\n</answer>", "8"),
        ("<answer>7</answer> <answer>8", "7"),
        ("<think><answer>1</answer></think>Final Answer: 2", "2"),
        ("The final answer is: **x = 3**.\nBye.", "x = 3"),
        ("8</answer>", None),
        ("<answer></answer>", None),
    ],
)
def test_tags_and_announcements(text, answer):
    assert extract(text, "answer") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("```python\nprint(1)\n```", "print(1)"),
        ("```\na\n```\nthen\n~~~\nb\n~~~\n", "b"),
        ("```py\na\n```\n```py\ncut", "a"),
        ("````\n```\nin\n```\n````", "```\nin\n```"),
        ("`a`", None),
    ],
)
def test_code(text, answer):
    assert extract(text, "code") == answer


def test_auto_takes_tags_before_boxes_before_words():
    assert extract(r"Final answer: 1. \boxed{2} <answer>3</answer>") == "3"
    assert extract(r"Final answer: 1. \boxed{2}") == "2"
    assert extract("Final answer: 1.") == "1"


def test_a_prompt_may_have_opened_the_think_block():
    assert final_text("so 5", thinking=True) == "" and final_text("so 5") == "so 5"
    assert extract(r"so</think>\boxed{5}", "boxed", thinking=True) == "5"


def test_kinds_have_words_and_unknown_ones_are_told():
    assert set(FORMATS) == set(KINDS) and FORMATS["boxed"] == BOXED
    assert THINK == messages.THINK
    with pytest.raises(UserError, match="did you mean boxed"):
        extract("", "box")


@pytest.mark.parametrize(
    "part", ["\\boxed{", "{", "<answer>", "```\n", "Final answer:", "\\boxed ", "<think>", "$"]
)
def test_reading_takes_time_in_proportion(part):
    """However it is nested: a response may be long, and written to be hard to read."""
    begun = time.process_time()
    for kind in KINDS:
        extract(part * 50_000, kind)
    canonical(part * 20_000)
    assert time.process_time() - begun < 5


@given(st.text(st.sampled_from("\\boxed{}<answer>/ \n1")), st.sampled_from(KINDS))
def test_any_text_can_be_read(text, kind):
    found = extract(text, kind)
    assert found is None or found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("0.5", r"\frac{1}{2}"),
        ("1/2", r"\dfrac12"),
        (r"-\frac{1}{2}", "-.50"),
        (r"\frac{-1}{2}", "-0.5"),
        ("1,234,567", "1234567"),
        ("$x = 5$", "5"),
        (r"\text{Yes}", "Yes"),
        ("(1, 2)", "(1,2)"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"10^{2}", "10^2"),
        (r"\$5.00", "5"),
        ("\u22123", "-3"),
        ("12.", "12"),
    ],
)
@pytest.mark.parametrize("kind", ["boxed", "auto"])
def test_the_same_written_otherwise(first, second, kind):
    assert equivalent(first, second, kind)


@pytest.mark.parametrize(
    ("first", "second"),
    [("1", "2"), ("0.33", "1/3"), ("(1,2)", "(2,1)"), ("1/0", "0"), ("1,2", "12"), ("x", "y")],
)
def test_what_differs_differs(first, second):
    assert not equivalent(first, second, "boxed") and not equivalent(first, second)


def test_words_and_code_have_rules_of_their_own():
    assert equivalent(" The  Knight ", "the knight", "answer")
    assert not equivalent("Ab", "ab", "boxed")
    assert equivalent("a = 1  \n\nb", "a = 1\nb\n", "code")
    assert not equivalent("if a:\n b", "if a:\nb", "code")


@given(st.text(st.sampled_from("0123456789./-,$ \\frac{}x=^%"), max_size=30))
def test_any_answer_equals_itself_and_a_number_its_fraction(text):
    assert equivalent(text, text)
    canonical("9" * 10_000), canonical("1." + text)


@given(st.lists(st.sampled_from(["1", "1.0", "2", "4/2", None, "x"]), max_size=12))
def test_clusters_part_the_answers(answers):
    groups = cluster(answers)
    assert sorted(i for g in groups for i in g) == [
        i for i, a in enumerate(answers) if a is not None
    ]
    assert [g[0] for g in groups] == sorted(g[0] for g in groups)
    for group in groups:
        assert len({canonical(answers[i]) for i in group}) == 1
