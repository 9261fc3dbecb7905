"""`launch.py eval` as one types it: against a server, from a file, stopped, resumed, compared."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from zaya_jax import cli
from zaya_jax.errors import UserError
from zaya_jax.evals import client, connection, record
from zaya_jax.evals.client import Answer, Sampling, Server, ServerError

ROOT = Path(__file__).parents[2]
QUESTIONS = [
    {"question_id": f"q{i}", "question": f"{i} + 1?", "options": [str(i), str(i + 1)],
     "answer": "B"} for i in range(6)
]  # fmt: skip


def reply(text: str, **message) -> dict:
    return {"choices": [{"message": {"content": text, **message}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": len(text)}}  # fmt: skip


@pytest.fixture
def server(monkeypatch):
    """A server whose answers are a function, and that keeps what it was asked."""
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)
    state = SimpleNamespace(
        asked=[], answer=lambda body: reply("\\boxed{B}"), lock=threading.Lock()
    )

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def send(self, status: int, content: bytes, after: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if after is not None:
                self.send_header("Retry-After", after)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            self.send(200, json.dumps({"data": [{"id": "zaya"}, {"id": "other"}]}).encode())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.asked.append(body)
            answer = state.answer(body)
            if isinstance(answer, int):
                self.send(answer, b"no")
            elif isinstance(answer, tuple):
                self.send(answer[0], b"later", answer[1])
            elif isinstance(answer, bytes):
                self.send(200, answer)
            else:
                self.send(200, json.dumps(answer).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        state.url = f"http://127.0.0.1:{listening.server_address[1]}"
        yield state
        listening.shutdown()


@pytest.fixture
def quiz(tmp_path) -> str:
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return f"mmlu_pro:{path}"


def run(*arguments) -> int:
    return cli.main(["eval", *map(str, arguments)])


def number(body) -> int:
    return int(re.search(r"(\d+) \+ 1", body["messages"][0]["content"])[1])


def test_a_served_model_is_scored(server, quiz, tmp_path, capsys):
    server.answer = lambda body: reply("\\boxed{B}" if number(body) < 3 or body["seed"] else "C")
    work = tmp_path / "run"
    out = tmp_path / "out.json"
    arguments = [f"--tasks={quiz}", f"--server={server.url}", f"--workdir={work}", "--samples=2",
                 "--temperature=0.5", "--max_tokens=9", f"--json={out}"]  # fmt: skip
    assert run(*arguments) == 0
    told = capsys.readouterr().out
    assert "avg@2 75.0%" in told and "pass@2 100.0%" in told and "over 6 tasks" in told
    (result,) = json.loads((work / "scores.json").read_text())["results"]
    assert result["rewards"]["q0"] == [1, 1] and result["rewards"]["q5"] == [0, 1]
    assert result["avg"]["mean"] == 0.75 and set(result["passed"]) == {"1", "2"}
    assert json.loads(out.read_text())["results"] == [result]
    assert len(server.asked) == 12
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in server.asked} == {
        ("zaya", 0.5, 9)
    }
    assert run(*arguments) == 0  # nothing is asked twice
    assert len(server.asked) == 12


def test_rsa_is_asked_for_and_kept_apart(server, quiz, tmp_path, capsys):
    command = [f"--tasks={quiz}", f"--server={server.url}", f"--workdir={tmp_path / 'run'}"]
    assert run(*command, '--rsa={"population": 4, "rounds": 1}') == 0
    assert all(body["rsa"] == {"population": 4, "rounds": 1} for body in server.asked)
    assert run(*command) == 2
    assert "holds an evaluation with rsa {'population': 4" in capsys.readouterr().err
    assert run(*command, "--rsa=8k-4k") == 2
    assert run(*command, "--rsa={oops") == 2
    assert "not JSON" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_this_machine_is_served_and_scored(tmp_path, capsys):
    from tests.serve import conftest as serve

    folder = serve.folder.__wrapped__(SimpleNamespace(mktemp=lambda name: _made(tmp_path / name)))
    work = tmp_path / "run"
    command = ["--tasks=reasoning_gym:chain_sum", f"--model={folder}", f"--workdir={work}",
               "--limit=2", "--max_tokens=4", "--concurrency=2", "--serve=page=32,chunks=64"]
    assert run(*command) == 0
    assert len((work / "answers").glob("*.jsonl").__next__().read_text().splitlines()) == 2
    assert run(*command) == 0  # nothing is asked again
    assert run(*command[:2], "--model=nowhere", f"--workdir={tmp_path / 'other'}") == 2
    assert "no such folder" in capsys.readouterr().err


def _made(folder):
    folder.mkdir()
    return folder


def test_what_was_answered_before_a_failure_is_kept(server, quiz, tmp_path, capsys):
    work = tmp_path / "run"
    arguments = [f"--tasks={quiz}", f"--server={server.url}", f"--workdir={work}",
                 "--concurrency=1"]  # fmt: skip
    server.answer = lambda body: 404 if number(body) == 3 else reply("\\boxed{B}")
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert "task 'q3': status 404: no. 3 of 6 answers are kept" in told
    (answers,) = (work / "answers").iterdir()
    answers.write_bytes(answers.read_bytes()[:-9])  # killed while it wrote
    server.answer = lambda body: reply("\\boxed{B}")
    asked = len(server.asked)
    assert run(*arguments) == 0
    assert len(server.asked) - asked == 4
    assert run(*arguments, "--temperature=1") == 2
    assert "holds an evaluation with temperature None, not 1.0" in capsys.readouterr().err
    assert run(*arguments, "--served=other") == 2
    assert "with model 'zaya', not 'other'" in capsys.readouterr().err
    assert run(*arguments, "--served=zoya") == 2
    assert "no model 'zoya'; it has: zaya, other" in capsys.readouterr().err


def test_what_a_server_refuses_counts_as_wrong_and_is_not_asked_again(
    server, quiz, tmp_path, capsys
):
    work = tmp_path / "run"
    arguments = [f"--tasks={quiz}", f"--server={server.url}", f"--workdir={work}",
                 "--concurrency=1"]  # fmt: skip
    server.answer = lambda body: 422
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert "refuses all 6 that it was asked, such as task 'q0': status 422: no" in told
    server.answer = lambda body: 400 if number(body) in (0, 3) else reply("\\boxed{B}")
    assert run(*arguments) == 0
    told = capsys.readouterr().out
    assert "avg@1 66.7%" in told
    assert "2 answers count as wrong, the server refused them, such as that to 'q0'" in told
    (result,) = json.loads((work / "scores.json").read_text())["results"]
    assert result["refused"] == {"q0": ["status 400: no"], "q3": ["status 400: no"]}
    asked = len(server.asked)
    server.answer = lambda body: reply("\\boxed{B}")
    assert run(*arguments) == 0 and len(server.asked) == asked
    assert "avg@1 66.7%" in capsys.readouterr().out
    (answers,) = (work / "answers").iterdir()
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(line for line in lines if '"q3"' not in line))
    assert run(*arguments) == 0 and len(server.asked) == asked + 1
    assert "avg@1 83.3%" in capsys.readouterr().out


def test_a_model_served_in_another_way_is_kept_apart(server, quiz, tmp_path, capsys):
    command = [f"--tasks={quiz}", f"--server={server.url}"]
    plain, small = f"--workdir={tmp_path / 'plain'}", f"--workdir={tmp_path / 'small'}"
    assert run(*command, plain) == 0
    assert run(*command, plain, "--serve=quantize=int4") == 2
    assert "with serve None, not ['quantize=int4']" in capsys.readouterr().err
    assert run(*command, small, "--serve=quantize=int4,page=32") == 0
    assert run(*command, small, "--serve=page=32,quantize=int4") == 0
    assert run(*command, small) == 2


def test_recorded_answers_are_scored(quiz, tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    rows = [{"task": f"q{i}", "response": "\\boxed{B}" if i else "\\boxed{A}"} for i in range(6)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [f"--tasks={quiz}", f"--answers={answers}", f"--workdir={tmp_path / 'run'}"]
    assert run(*command) == 0
    assert "avg@1 83.3%" in capsys.readouterr().out
    assert run(*command[:2], f"--workdir={tmp_path / 'two'}", "--limit=2") == 0
    assert "avg@1 50.0%" in capsys.readouterr().out  # the file answers more than these
    answers.write_text(json.dumps(rows[0]))
    assert run(*command) == 2
    assert "5 of 6 tasks have no answer, such as 'q1'" in capsys.readouterr().err
    for text, message in (
        ('{"task": "q9", "response": "x"}', "line 1: the set has no task 'q9'"),
        ('{"task": "q1", "response": 3}', "response is 3"),
        ('{"task": "q1"}', "no answer {task, response}"),
        ("nonsense", "line 1: no answer"),
    ):
        answers.write_text(text)
        assert run(*command) == 2
        assert message in capsys.readouterr().err


def test_a_set_that_the_training_data_holds_is_refused_unless_forced(
    server, quiz, tmp_path, capsys
):
    training = tmp_path / "train.jsonl"
    training.write_text(json.dumps({"text": "Someone asks: 2 + 1?"}))  # the bare question
    command = [f"--tasks={quiz}", f"--server={server.url}", f"--workdir={tmp_path / 'run'}",
               f"--training={training}"]  # fmt: skip
    assert run(*command) == 2
    assert "1 of 6 prompts" in capsys.readouterr().err and not server.asked
    assert run(*command, "--force") == 0
    assert "1 of its prompts are in the training data" in capsys.readouterr().out


def test_evaluations_are_compared(server, quiz, tmp_path, capsys):
    for name, right in (("before", lambda n: n < 2), ("after", lambda n: True)):
        server.answer = lambda body, right=right: reply(f"\\boxed{{{'AB'[right(number(body))]}}}")
        work = tmp_path / name
        assert run(f"--tasks={quiz}", f"--server={server.url}", f"--workdir={work}") == 0
    capsys.readouterr()
    assert run(f"--compare={tmp_path / 'before'},{tmp_path / 'after'}") == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert "before" in head and "after" in head
    assert "33.3 (" in row and "100.0 (" in row and row.rstrip(" |").endswith("+66.7")
    assert run(f"--compare={tmp_path}") == 2
    assert "no finished evaluation" in capsys.readouterr().err
    both = f"--workdir={tmp_path / 'before'},{tmp_path / 'after'}"
    assert cli.main(["report", both, f"--out={tmp_path / 'page.html'}"]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "33.3% to 100.0%" in text and "+66.7" in text and "<svg" in text


def test_programs_are_scored_in_the_sandbox(tmp_path, capsys):
    from tests import sandboxes

    sandboxes.needed()
    file, answers = tmp_path / "he.jsonl", tmp_path / "answers.jsonl"
    row = {"prompt": "def f(x):\n", "canonical_solution": "    return x",
           "test": "def check(c):\n    assert c(1) == 1", "entry_point": "f"}  # fmt: skip
    file.write_text("".join(json.dumps(row | {"task_id": t}) + "\n" for t in ("a", "b")))
    body = {"a": "def f(x): return x", "b": "import os\nos._exit(0)"}
    answers.write_text(
        "".join(
            json.dumps({"task": t, "response": f"```python\n{code}\n```"}) + "\n"
            for t, code in body.items()
        )
    )
    work = tmp_path / "run"
    assert run(f"--tasks=humaneval:{file}", f"--answers={answers}", f"--workdir={work}") == 0
    (result,) = json.loads((work / "scores.json").read_text())["results"]
    assert result["rewards"] == {"a": [1], "b": [0]} and result["failures"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks=humaneval"], "--workdir is missing"),
        (["--workdir={}/w"], "--tasks is missing"),
        (["--workdir={}/w", "--tasks=humaneval"], "give one of --model=RUN and --server=URL"),
        (["--workdir={}/w", "--tasks=humaneval", "--server=localhost"], "expected a URL"),
        (["--workdir={}/w", "--tasks=humaneval", "--server=http://127.0.0.1:9"], "names no models"),
        (["--workdir={}/w", "--tasks=humaneval,ifbench", "--answers=x"], "is of one set"),
        (["--workdir={}/w", "--tasks=humaneval", "--answers=x", "--samples=0"], "at least 1"),
        (["--workdir={}/w", "--tasks=humaneval", "--answers={}/x"], "no such file"),
        (["--workdir={}/w", "--tasks=humaneval", "--server=x", "--timeout=0"], "above 0"),
    ],
)
def test_mistakes_are_told(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)
    assert run(*(argument.format(tmp_path) for argument in arguments)) == 2
    assert message in capsys.readouterr().err


def test_a_busy_server_is_asked_again_and_a_broken_one_given_up(server):
    opened = Server.open(server.url + "/v1/", None)
    statuses = [503, 429, reply("yes", reasoning_content="hm")]
    server.answer = lambda body: statuses.pop(0)
    answer = opened.ask("?", Sampling(), 7)
    assert answer.response == "<think>hm</think>yes" and answer.tokens == 3
    assert [body["seed"] for body in server.asked] == [7, 7, 7]
    assert not {"temperature", "top_p", "max_tokens"} & set(server.asked[0])
    for broken, message in (
        (404, "status 404"),
        (429, "status 429"),
        (503, "status 503"),
        (b"<html>", "no JSON"),
        ({"choices": []}, "no chat completion"),
        ([], "no chat completion"),
    ):
        server.answer = lambda body, broken=broken: broken
        with pytest.raises(ServerError, match=message):
            opened.ask("?", Sampling(), 0)


def test_an_interrupt_waits_for_no_answer(server, quiz, tmp_path):
    """What had come is kept, and what was under way is asked for again by the same command."""
    hold, begun = threading.Event(), time.monotonic()

    def answer(body):
        if number(body) > 0 and not hold.is_set():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            hold.wait(60)
        return reply("\\boxed{B}")

    server.answer = answer
    command = [f"--tasks={quiz}", f"--server={server.url}", f"--workdir={tmp_path / 'run'}",
               "--concurrency=1"]  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        assert run(*command) != 0
    assert time.monotonic() - begun < 30
    hold.set()
    asked = len(server.asked)
    assert run(*command) == 0
    assert len(server.asked) - asked == len(QUESTIONS) - 1


def test_a_server_that_says_when_is_asked_then_however_often(server, monkeypatch):
    opened = Server.open(server.url, None)
    statuses = [(429, "0")] * client.TRIES + [(503, "0")] * client.TRIES + [reply("yes")]
    server.answer = lambda body: statuses.pop(0)
    assert opened.ask("?", Sampling(), 0).response == "yes"
    server.answer = lambda body: (429, "60")
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(ServerError, match="status 429: later"):
        opened.ask("?", Sampling(), 0, stop)


@pytest.mark.parametrize(
    ("after", "seconds"),
    [(None, None), ("soon", None), ("-1", None), ("7", 7), ("0", 0.01), ("9" * 20, 3600),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.01), ("Wed, 21 Oct 2215 07:28:00 GMT", 3600)],
)  # fmt: skip
def test_when_a_server_may_be_asked_again(after, seconds, monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)
    assert client._seconds_of(after) == seconds


def test_an_answer_may_take_as_long_as_it_likes_or_as_one_says(
    server, quiz, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(client, "TRIES", 1)
    server.answer = lambda body: time.sleep(0.5) or reply("yes")
    assert Server.open(server.url, None).ask("?", Sampling(), 0).response == "yes"
    command = [f"--tasks={quiz}", f"--server={server.url}", f"--workdir={tmp_path / 'run'}"]
    assert run(*command, "--timeout=0.1") == 2
    assert "no answer within 0.1 s" in capsys.readouterr().err


def test_an_answer_survives_the_file(tmp_path):
    answer = Answer(
        "line\u2028one\nγ\ud800".encode("utf-8", "replace").decode(), "length", None, 0.5
    )
    refused = Answer("", "refused", None, 0.0, "status 400: too long")
    with record.Record(tmp_path / "a.jsonl") as file:
        file.add("t", 3, answer)
        file.add("t", 4, refused)
    assert record.read(tmp_path / "a.jsonl", {"t"}) == {"t": {3: answer, 4: refused}}
    assert record.read(tmp_path / "none.jsonl", {"t"}) == {}
    with pytest.raises(UserError, match="cannot write there"):
        record.Record(tmp_path / "a.jsonl" / "b.jsonl")


def test_the_command_as_it_is_typed(quiz, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        "".join(json.dumps({"task": f"q{i}", "response": "\\boxed{B}"}) + "\n" for i in range(6))
    )
    done = subprocess.run(
        [sys.executable, "launch.py", "eval", "--tasks", quiz, f"--answers={answers}",
         f"--workdir={tmp_path / 'run'}"], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "avg@1 100.0%" in done.stdout
