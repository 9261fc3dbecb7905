import json

import pytest

from zaya_jax.data.cache import atomic_path
from zaya_jax.errors import UserError
from zaya_jax.train import workdir


def start(experiment, folder):
    """A run as its first checkpoint leaves it, without the numbers."""
    workdir.claim(experiment, folder)
    (folder / "checkpoints" / "2").mkdir(parents=True)


def test_a_new_folder_is_claimed_and_a_run_in_it_found_again(experiment, tmp_path):
    folder = tmp_path / "deep" / "run"
    assert workdir.claim(experiment, folder) is False
    (folder / "checkpoints" / "2").mkdir(parents=True)
    assert workdir.claim(experiment, folder) is True
    assert workdir.read_config(folder) == experiment


def test_a_start_without_a_checkpoint_binds_nothing(experiment, changed, tmp_path):
    workdir.claim(experiment, tmp_path)
    workdir.check_data(tmp_path, {"corpus": "one"})
    for name in ("tokenizer/tokenizer.json", "tensorboard/events", "metrics.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("cut off in the midd")
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-1").mkdir(parents=True)
    other = changed("optim", learning_rate=0.5)
    assert workdir.claim(other, tmp_path) is False
    assert workdir.read_config(tmp_path) == other
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "checkpoints"}
    workdir.check_data(tmp_path, {"corpus": "another"})


def test_a_damaged_checkpoint_still_binds(experiment, changed, tmp_path):
    workdir.claim(experiment, tmp_path)
    (tmp_path / "checkpoints" / "damaged-2").mkdir(parents=True)
    with pytest.raises(UserError, match="another config"):
        workdir.claim(changed("optim", learning_rate=0.5), tmp_path)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    with workdir.lock(folder):
        with pytest.raises(UserError, match="another process trains in --workdir="):
            with workdir.lock(folder):
                pass
    with workdir.lock(folder):
        pass
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="neither empty"), workdir.lock(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_a_run_of_another_config_is_refused_with_the_fields_that_differ(
    experiment, changed, tmp_path
):
    start(experiment, tmp_path / "run")
    other = changed("optim", learning_rate=0.5)
    other = changed("model", base=other, num_layers=3)
    with pytest.raises(UserError) as error:
        workdir.claim(other, tmp_path / "run")
    assert "optim.learning_rate: 0.01 there, 0.5 here" in str(error.value)
    assert "model.num_layers: 1 there, 3 here" in str(error.value)
    assert "batch_size" not in str(error.value)
    assert workdir.read_config(tmp_path / "run") == experiment


def test_length_and_cadence_may_change(experiment, changed, tmp_path):
    start(experiment, tmp_path / "run")
    longer = changed("train", steps=99, log_every=7, eval_every=50, checkpoint_every=11)
    assert workdir.claim(longer, tmp_path / "run")
    assert workdir.read_config(tmp_path / "run").train.steps == 99


def test_what_may_change_names_fields_that_exist(experiment):
    from zaya_jax.config import to_dict

    for path in workdir.MAY_CHANGE:
        node = to_dict(experiment)
        for name in path.split("."):
            node = node[name]


def test_a_folder_with_other_things_is_left_alone(experiment, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="neither empty nor a run directory"):
        workdir.claim(experiment, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_start_killed_while_it_claimed_its_folder_binds_nothing(experiment, tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / workdir.CONFIG) as scratch:
        scratch.unlink()
    scratch.touch()  # as kill -9 leaves it
    with workdir.lock(tmp_path):
        assert workdir.claim(experiment, tmp_path) is False
    assert workdir.read_config(tmp_path) == experiment


def test_an_unwritable_workdir_is_one_message(experiment, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        workdir.claim(experiment, tmp_path / "file" / "run")
    with pytest.raises(UserError, match="cannot write there"):
        workdir.claim(experiment, tmp_path / "file")


def test_a_broken_config_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        workdir.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"modle": {}}')
    with pytest.raises(UserError, match="modle.*did you mean model"):
        workdir.read_config(tmp_path)


def test_changed_data_is_refused(tmp_path):
    def info(rows, corpus):
        return {"rows_sha256": rows, "corpus": {"sha256": corpus, "documents": (1, 2)}}

    workdir.check_data(tmp_path, info("r", "a"))
    workdir.check_data(tmp_path, info("r", "a"))
    with pytest.raises(UserError, match="corpus.sha256: 'a' then, 'b' now"):
        workdir.check_data(tmp_path, info("s", "b"))


def test_what_changes_no_row_of_the_data_does_not_bind_a_run(tmp_path):
    workdir.check_data(tmp_path, {"rows_sha256": "r", "corpus": {"sha256": "a"}})
    now = {"rows_sha256": "r", "corpus": {"sha256": "b"}, "told": "by a later version"}
    workdir.check_data(tmp_path, now)
    assert json.loads((tmp_path / "data.json").read_text()) == now


def test_every_start_is_recorded(tmp_path):
    workdir.record_environment(tmp_path)
    workdir.record_environment(tmp_path)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert len(starts) == 2
    assert starts[0]["versions"]["jax"] and starts[0]["cores"] >= 1 and starts[0]["command"]
