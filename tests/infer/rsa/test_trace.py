"""A run that is killed goes on as if it had not been."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.infer.rsa.scripted import QUESTION, Scripted, tokenizer
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa import Settings, algorithm
from zaya_jax.infer.rsa.trace import Trace

CONVERSATION = [{"role": "user", "content": QUESTION}]
SETTINGS = Settings(population=4, candidates=2, rounds=2, tail=20, budget=200)
MODEL = {"path": "somewhere"}


def run(path, policy=None, settings=SETTINGS, model=MODEL):
    about = algorithm.about(CONVERSATION, settings, model)
    with Trace(path, about) as trace:
        return algorithm.solve(
            policy or Scripted(), CONVERSATION, settings, tokenizer(), trace=trace
        )


def test_what_is_there_is_not_made_again(tmp_path):
    whole = run(tmp_path / "a.jsonl")
    again = Scripted()
    assert run(tmp_path / "a.jsonl", again).as_json() == whole.as_json()
    assert not again.asks


def test_a_prompt_that_says_something_else_is_another_run(tmp_path):
    template = tmp_path / "prompt.jinja"
    template.write_text("{{ problem }}{% for c in candidates %} {{ c.text }}{% endfor %}")
    settings = dataclasses.replace(SETTINGS, template=str(template))
    run(tmp_path / "a.jsonl", settings=settings)
    copy = tmp_path / "copy.jinja"
    copy.write_text(template.read_text())
    again = Scripted()
    run(tmp_path / "a.jsonl", again, dataclasses.replace(settings, template=str(copy)))
    assert not again.asks  # it says the same
    template.write_text(template.read_text() + "!")
    with pytest.raises(UserError, match="its template is"):
        Trace(tmp_path / "a.jsonl", algorithm.about(CONVERSATION, settings, MODEL))


def test_wherever_the_log_ends_the_run_goes_on_to_the_same(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = run(path)
    data = path.read_bytes()
    lines = data.count(b"\n")
    rng = random.Random(0)
    header = data.index(b"\n")
    cuts = [
        0,
        3,
        header,
        header + 1,
        len(data) - 1,
        *(rng.randrange(20, len(data)) for _ in range(8)),
    ]
    for cut in cuts:
        path.write_bytes(data[:cut])
        policy = Scripted(backwards=True)
        assert run(path, policy).as_json() == whole.as_json()
        assert len(policy.asks) == 12 - max(0, data[:cut].count(b"\n") - 1)
        assert path.read_bytes().count(b"\n") == lines


def test_a_policy_that_fails_loses_only_what_it_was_at(tmp_path):
    class Fails(Scripted):
        def answer(self, ask):
            if len(self.asks) > 4 and ask is self.asks[6]:
                raise RuntimeError("out of memory")
            return super().answer(ask)

    path = tmp_path / "a.jsonl"
    with pytest.raises(RuntimeError, match="out of memory"):
        run(path, Fails())
    policy = Scripted()
    again = run(path, policy)
    assert len(policy.asks) == 12 - 6  # four of the first stage, two of the second
    assert again.as_json() == run(tmp_path / "b.jsonl").as_json()


def test_a_log_of_another_run_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "a.jsonl"
    run(path)
    before = path.read_bytes()
    for settings, model, words in [
        (dataclasses.replace(SETTINGS, seed=3), MODEL, "its seed is 0, this one's 3"),
        (dataclasses.replace(SETTINGS, tail=9), MODEL, "its tail is 20"),
        (SETTINGS, {"path": "elsewhere"}, "its model is"),
    ]:
        with pytest.raises(UserError, match=words):
            run(path, settings=settings, model=model)
    assert path.read_bytes() == before
    run(path, settings=dataclasses.replace(SETTINGS, selection="none"))


@pytest.mark.parametrize(
    "data", [b"hello", b"hello\n", b"{}\n", b'{"run": 3}\n', b"\xff\xfe\n", b'{"run": {}}\n[]\n']
)
def test_what_is_no_log_is_refused_and_left_as_it_is(tmp_path, data):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match="not a trace|of another run"):
        run(path)
    assert path.read_bytes() == data


def test_two_processes_do_not_write_one_log(tmp_path):
    about = algorithm.about(CONVERSATION, SETTINGS, MODEL)
    with Trace(tmp_path / "a.jsonl", about):
        with pytest.raises(UserError, match="another process"):
            Trace(tmp_path / "a.jsonl", about)
    Trace(tmp_path / "a.jsonl", about).__exit__()


CHILD = """
import sys, time
from pathlib import Path
from tests.infer.rsa import test_trace
from tests.infer.rsa.scripted import Scripted

class Slow(Scripted):
    def answer(self, ask):
        time.sleep(0.2)
        return super().answer(ask)

test_trace.run(Path(sys.argv[1]), Slow())
"""


def test_kill_minus_nine(tmp_path):
    path, root = tmp_path / "a.jsonl", Path(__file__).parents[3]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    deadline = time.monotonic() + 300  # it imports jax, on a machine that may be busy
    while not path.exists() or path.read_bytes().count(b"\n") < 6:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    policy = Scripted()
    resumed = run(path, policy)
    assert 0 < len(policy.asks) < 12
    assert resumed.as_json() == run(tmp_path / "b.jsonl").as_json()
    logged = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len({(r["stage"], r["number"]) for r in logged}) == len(logged) == 12
