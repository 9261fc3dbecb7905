"""Runs within the sandbox: a program against its tests, each in a process of its own.

The candidate is a stranger to its judge. Its processes are forked before a test is read, hold
neither the pipe that tests come from nor the one that verdicts go to, and give back plain data.
What is expected of it is either not in the sandbox at all, or in a process whose memory it cannot
read: there is no /proc, and the calls that could are refused.

Frames, a length of four bytes and so much JSON, come on standard input: a job, then its tests. One
line of JSON goes to standard output for each test. Only the standard library is needed.
"""

from __future__ import annotations

import builtins
import json
import os
import select
import signal
import sys
import time

import values

MODULE = "candidate"
CHUNK = 1 << 16
ERRORS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
}


def read_frame(descriptor):
    """The next frame; None at the end."""
    head = _read(descriptor, 4)
    if len(head) < 4:
        return None
    return json.loads(_read(descriptor, int.from_bytes(head, "big")))


def write_frame(descriptor, frame):
    data = json.dumps(frame).encode()
    data = len(data).to_bytes(4, "big") + data
    while data:
        data = data[os.write(descriptor, data) :]


def _read(descriptor, length):
    parts = b""
    while len(parts) < length and (part := os.read(descriptor, min(CHUNK, length - len(parts)))):
        parts += part
    return parts


class Judge:
    """Where tests come from, and verdicts go to: no candidate ever holds these."""

    def __init__(self):
        self.tests, self.verdicts = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        self.job = read_frame(self.tests)
        self.until = time.monotonic() + self.job["total"]
        self.failed = False

    def seconds(self):
        """That the next test may take."""
        return min(self.job["seconds"], self.until - time.monotonic())

    def say(self, **verdict):
        self.failed |= verdict.get("status") not in ("ok", None)
        data = json.dumps(verdict).encode() + b"\n"
        while data:
            data = data[os.write(self.verdicts, data) :]

    def child(self, work, *pipes) -> int:
        """Forks; in the child, closes what is ours, does its work and exits."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.setsid()
            for descriptor in (self.tests, self.verdicts, *pipes):
                os.close(descriptor)
            work()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException as error:
            _tell(error)
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status & 0xFF)
        raise AssertionError("a child never comes here")


def _tell(error):
    import traceback

    traceback.print_exception(type(error), error, error.__traceback__)


def define(source, name):
    """Runs a program as module `name`; its namespace."""
    module = type(sys)(name)
    module.__file__ = f"{name}.py"
    sys.modules[name] = module
    exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def watch(pid, out, seconds, most):
    """Reads `out` while process `pid` runs. What it wrote, and how it ended."""
    data, until = b"", time.monotonic() + seconds
    status = "ok"
    while True:
        ready, _, _ = select.select([out], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            status = "time"
            break
        part = os.read(out, CHUNK)
        data += part
        if len(data) > most:
            status, data = "output", data[:most]
            break
        if not part:
            break
    # a program that closed its output still has its time
    while status == "ok" and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            status = "time"
        time.sleep(0.0005)
    for kill in (os.killpg, os.kill):  # what it started, and itself
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(out)
    return data, ("failed" if status == "ok" and code else status), code


def program(judge, text):
    """Runs the program with a text as its input; tells what it prints."""
    job = judge.job
    given = os.open("/tmp/.input", os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600)
    os.unlink("/tmp/.input")
    data = memoryview(text.encode("utf-8", "surrogatepass"))
    while data:
        data = data[os.write(given, data) :]
    os.lseek(given, 0, os.SEEK_SET)
    out, out_in = os.pipe()

    def work():
        os.dup2(given, 0)
        os.dup2(out_in, 1)
        for descriptor in (given, out_in):
            os.close(descriptor)
        define(job["source"], "__main__")

    pid = judge.child(work, out)
    os.close(out_in)
    os.close(given)
    data, status, code = watch(pid, out, judge.seconds(), job["output"])
    judge.say(status=status, output=data.decode("utf-8", "replace"), exit=code)


def call(judge, arguments):
    """Calls the function with some arguments; tells what it returns."""
    job = judge.job
    result, result_in = os.pipe()

    def work():
        function = find(define(job["source"], MODULE), job["entry"])
        returned = function(*values.decode(arguments))
        data = json.dumps(values.encode(returned)).encode()
        while data:
            data = data[os.write(result_in, data) :]

    pid = judge.child(work, result)
    os.close(result_in)
    data, status, _ = watch(pid, result, judge.seconds(), job["output"])
    try:
        value = json.loads(data) if status == "ok" else None
    except (ValueError, RecursionError):
        status, value = "failed", None
    judge.say(status=status, value=value)


def sweep(judge, test):
    """Calls a program's own function with each of many arguments, all in one process; tells all.

    For programs whose origin is trusted, if not their end.
    """
    job = judge.job
    result, result_in = os.pipe()

    def work():
        function = find(define(test["source"], MODULE), job["entry"])
        signal.signal(signal.SIGALRM, late)
        told = []
        for arguments in test["tests"]:
            try:
                signal.setitimer(signal.ITIMER_REAL, job["seconds"])
                returned = function(*values.decode(arguments))
                told.append({"status": "ok", "value": values.encode(returned)})
            except Late:
                told.append({"status": "time"})
            except Exception:
                told.append({"status": "failed"})
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        data = json.dumps(told).encode()
        while data:
            data = data[os.write(result_in, data) :]

    pid = judge.child(work, result)
    os.close(result_in)
    most = job["output"] * len(test["tests"])
    data, status, _ = watch(pid, result, 1 + job["seconds"] * len(test["tests"]), most)
    told = json.loads(data) if status == "ok" else [{"status": status}] * len(test["tests"])
    judge.say(told=told)


def find(namespace, entry):
    """A function, or a method of the class `Solution`, by name."""
    if entry in namespace:
        return namespace[entry]
    return getattr(namespace["Solution"](), entry)


def check(judge):
    """Runs a test, which judges the candidate itself: its `check(candidate)` raises, or does not.

    The test runs here, the candidate in another process: calls go there and come back as data. That
    process was forked before the test was read.
    """
    job = judge.job
    asked, ask = os.pipe()
    answers, answer = os.pipe()
    pid = judge.child(lambda: serve(job["source"], job["entry"], asked, answer), ask, answers)
    os.close(asked)
    os.close(answer)

    def candidate(*arguments, **named):
        write_frame(ask, [values.encode(arguments), values.encode(named)])
        reply = read_frame(answers)
        if reply is None:
            raise RuntimeError("the candidate ended")
        if "error" in reply:
            name, message = reply["error"]
            raise ERRORS.get(name, RuntimeError)(message)
        return values.decode(reply["value"])

    test = read_frame(judge.tests)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, job["seconds"])
    try:
        namespace = define(test["setup"], "setup")
        namespace[job["entry"]] = candidate
        exec(compile(test["checks"], "checks.py", "exec", dont_inherit=True), namespace)
        namespace["check"](candidate)
        signal.setitimer(signal.ITIMER_REAL, 0)
        judge.say(status="ok")
    except Late:
        judge.say(status="time")
    except BaseException as error:
        judge.say(status="failed", detail=f"{type(error).__name__}: {error}"[:500])
    os.kill(pid, signal.SIGKILL)


class Late(BaseException):
    """The time of a test is over. No test expects this."""


def late(signal, frame):
    raise Late


def serve(source, entry, asked, answer):
    """The candidate's side of `checks`: calls that come are made, until none comes."""
    function = find(define(source, MODULE), entry)
    while (question := read_frame(asked)) is not None:
        try:
            arguments, named = map(values.decode, question)
            reply = {"value": values.encode(function(*arguments, **named))}
        except Exception as error:
            reply = {"error": [type(error).__name__, str(error)[:500]]}
        write_frame(answer, reply)


if __name__ == "__main__":
    sys.set_int_max_str_digits(0)
    this = Judge()
    if this.job["kind"] == "checks":
        check(this)
    else:
        each = {"programs": program, "calls": call, "sweep": sweep}[this.job["kind"]]
        while (test := read_frame(this.tests)) is not None:
            if this.seconds() <= 0:
                this.say(status="time")
            elif not (this.failed and this.job["stop"]):
                each(this, test)
