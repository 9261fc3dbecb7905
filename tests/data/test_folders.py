import os
import subprocess
import sys
import time

import psutil
import pytest

from zaya_jax.data import folders
from zaya_jax.data.chat import ChatTemplate
from zaya_jax.data.encode import Encoder
from zaya_jax.data.folders import Division, Job, prepare
from zaya_jax.data.readers import Rules
from zaya_jax.data.sources import survey


@pytest.fixture
def job(folder, tokenizer, monkeypatch):
    """The small corpus in a dozen shards."""
    monkeypatch.setattr(folders, "SHARD_RECORDS", 5)
    monkeypatch.setattr(folders, "SHARD_BYTES", 1000)
    source, rules = str(folder), Rules()
    encoder = Encoder(tokenizer, ChatTemplate.find())
    return Job(source, rules, survey(source, rules), Division(0.1, None), encoder)


def shards(folder):
    """Content and time of all files that hold examples."""
    files = [*folder.glob("[!.]*.array_record"), *folder.glob("[!.]*.npz")]
    return {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


def contents(folder):
    return {name: data for name, (data, _) in shards(folder).items()}


class Killed(BaseException):
    """What no code of ours catches."""


def kill_after(monkeypatch, shards):
    """Ends the preparation in the midst of a later shard, and leaves litter as a kill does."""
    write, left = folders.write_shard, [shards]

    def dying(file, *rest):
        if not left[0]:
            file.with_name(f".{file.stem}-0123abcd{file.suffix}").write_bytes(b"half")
            raise Killed
        left[0] -= 1
        write(file, *rest)

    monkeypatch.setattr(folders, "write_shard", dying)


def test_a_killed_preparation_goes_on_with_what_is_done(job, tmp_path, monkeypatch):
    prepare(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            prepare(job, tmp_path / "killed")
    done = shards(tmp_path / "killed")
    assert len(done) == 2 * 4 and not folders.is_prepared(tmp_path / "killed")
    advanced = []
    prepare(job, tmp_path / "killed", advance=advanced.append)
    after = shards(tmp_path / "killed")
    assert {name: after[name] for name in done} == done  # times too: not written again
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*-*"))
    assert sum(advanced) == job.bytes


def test_a_changed_source_makes_anew_what_has_changed(job, folder, tmp_path):
    prepare(job, tmp_path / "out")
    before = shards(tmp_path / "out")
    last = sorted(folder.iterdir())[-1]
    last.write_text(last.read_text() + "# more\n")
    changed = Job(job.source, job.rules, survey(job.source, job.rules), job.division, job.encoder)
    prepared = prepare(changed, tmp_path / "out")
    after = shards(tmp_path / "out")
    assert prepared.about.corpus == changed.survey.info
    same = before.items() & after.items()
    assert len(before) - 4 <= len(same) < len(before)  # all but a shard or two, with their tables
    names = {shard.file for part in prepared.about.shards.values() for shard in part}
    assert names == {name for name in after if name.endswith(".array_record")}


def test_a_source_that_changes_while_it_is_read_is_told(job, folder, tmp_path):
    (folder / "module_00.py").unlink()
    with pytest.raises(ValueError, match="changed while it was read"):
        prepare(job, tmp_path / "out")
    assert not folders.is_prepared(tmp_path / "out")


SCRIPT = """
import sys
from pathlib import Path
from zaya_jax.data import folders
from zaya_jax.data.chat import ChatTemplate
from zaya_jax.data.encode import Encoder
from zaya_jax.data.readers import Rules
from zaya_jax.data.sources import survey
from zaya_jax.data.tokenizer import Tokenizer

if __name__ == "__main__":
    source, tokenizer, out = sys.argv[1:]
    folders.SHARD_RECORDS, folders.SHARD_BYTES = 5, 1000
    encoder = Encoder(Tokenizer.load(tokenizer), ChatTemplate.find())
    job = folders.Job(
        source, Rules(), survey(source, Rules()), folders.Division(0.1, None), encoder
    )
    folders.prepare(job, Path(out), workers=2)
"""


@pytest.mark.slow
def test_workers_killed_with_their_parent_and_started_again_give_the_same(
    job, folder, tokenizer, tmp_path
):
    prepare(job, tmp_path / "whole")
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "script.py").write_text(SCRIPT)
    out = tmp_path / "out"
    command = [sys.executable, tmp_path / "script.py", folder, tmp_path / "tokenizer", out]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None and not list(out.glob("*.array_record")):
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert workers and not psutil.wait_procs(workers, timeout=60)[1]  # they end with their parent
    done = len(list(out.glob("*.array_record")))
    assert 0 < done <= len(list((tmp_path / "whole").glob("*.array_record")))
    subprocess.run(command, env=environment, check=True)
    assert contents(out) == contents(tmp_path / "whole")
