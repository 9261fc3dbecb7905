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
