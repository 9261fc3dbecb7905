import os

import pytest

from zaya_jax.data.cache import atomic_path


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    file = tmp_path / "deep" / "file.json"
    with atomic_path(file) as scratch:
        scratch.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(file) as scratch:
        scratch.write_text("half of the ne")
        raise RuntimeError("killed")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_the_scratch_file_keeps_the_suffix(tmp_path):
    with atomic_path(tmp_path / "tokens.npz") as scratch:
        assert scratch.suffix == ".npz" and scratch.parent == tmp_path


def test_files_get_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "file.json") as scratch:
            scratch.write_text("{}")
    finally:
        os.umask(before)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o640
