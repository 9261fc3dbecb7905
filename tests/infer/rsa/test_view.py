"""What a person sees of a run."""

import io
import re

from tests.infer.rsa.scripted import QUESTION, Scripted, tokenizer
from zaya_jax.infer.rsa import Sample, Settings, algorithm
from zaya_jax.infer.rsa.view import View, printable

SETTINGS = Settings(population=4, candidates=2, rounds=1, tail=20, budget=200)


def shown(live: bool, policy=None, settings=SETTINGS) -> str:
    out = io.StringIO()
    view = View(settings, out, live=live)
    conversation = [{"role": "user", "content": QUESTION}]
    algorithm.solve(policy or Scripted(1.0), conversation, settings, tokenizer(), observer=view)
    return out.getvalue()


def test_a_terminal_shows_stages_rollouts_votes_and_the_answer():
    text = shown(live=True)
    assert "····" in text and "▸" in text and "●●●●" in text
    assert "stage 0 of 1" in text and "stage 1 of 1" in text and "42" in text
    assert "▇▇▇▇ 4" in text and "answer (majority): 42" in text
    assert re.search(r"D\(q\) = [\d,]+ decoded", text)


def test_a_file_gets_a_line_for_each_rollout_and_no_control_characters():
    text = shown(live=False)
    assert text.count("stage 0 of 1, rollout") == 4 and "answer 42" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_a_model_cannot_speak_to_the_terminal():
    def evil(asks, done, progress=None):
        for i in range(len(asks)):
            done(i, Sample("\\boxed{\x1b[2J\x1b]0;owned\x07 5}", 9, 3, "eos"))

    text = shown(live=True, policy=evil, settings=SETTINGS)
    assert "owned" in text
    ours = re.sub(r"\x1b\[(\d+F|J)", "", text)
    assert all(c.isprintable() or c == "\n" for c in ours)
    assert printable("a\x1b[31m\nb") == "a\ufffd[31m b" and len(printable("x" * 99)) == 48


def test_what_was_cut_is_marked():
    settings = Settings(population=2, candidates=2, rounds=0, tail=9, budget=9, final_budget=None)
    text = shown(live=True, settings=settings)
    assert "○○" in text and "no answer: 2" in text and "none was given" in text
