"""Safetensors files: the same bytes as the library's, and damage told in words."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from zaya_jax.hf.safetensors_io import (
    CheckpointError,
    Reader,
    Spec,
    find_files,
    index_of,
    make_header,
    parse_header,
    plan,
    read_header,
    write_file,
)

TENSORS = {
    "b": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "a": np.arange(4, dtype=np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(3.5),
}


def write(path, tensors):
    header = make_header({n: Spec(v.dtype, v.shape) for n, v in tensors.items()})
    write_file(path, header, (tensors[name] for name in header.entries))


def test_files_are_those_of_the_library(tmp_path):
    write(tmp_path / "ours", TENSORS)
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, value in load_file(tmp_path / "ours").items():
        assert value.dtype == TENSORS[name].dtype and np.array_equal(value, TENSORS[name])


def test_reading_is_exact_and_read_only(tmp_path):
    save_file(TENSORS, tmp_path / "x")
    reader = Reader([tmp_path / "x"])
    for name, value in TENSORS.items():
        found = reader.read(name)
        assert found.dtype == value.dtype and np.array_equal(found, value)
        assert not found.flags.writeable


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 120))
def test_a_plan_holds_every_tensor_once_and_in_order(sizes, most):
    specs = {f"t{i}": Spec(np.dtype(np.uint8), (n,)) for i, n in enumerate(sizes)}
    files = plan(specs, "model", most)
    assert sorted(n for h in files.values() for n in h.entries) == sorted(specs)
    for header in files.values():
        assert header.data_bytes <= most or len(header.entries) == 1
    index = json.loads(index_of(files))
    assert index["metadata"]["total_size"] == sum(sizes)
    assert set(index["weight_map"]) == set(specs)


def damaged(header: dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        (b"1234", "truncated"),
        (damaged({"a": entry()}, b"123"), "truncated: "),
        (damaged({"a": entry()}, b"12345"), "left over"),
        (damaged({}, length=10**12), "truncated"),
        (damaged({}, length=10), "truncated"),
        ((2).to_bytes(8, "little") + b"{]", "damaged header"),
        ((2).to_bytes(8, "little") + b"[]", "damaged header"),
        (damaged({"a": entry(dtype="F31")}, b"1234"), "unknown dtype 'F31'"),
        (damaged({"a": entry(offsets=(4, 8))}, b"12345678"), "starts at byte 4"),
        (damaged({"a": entry(offsets=(0, 8))}, b"12345678"), "takes 4 bytes"),
        (damaged({"a": entry(shape=(-1,))}, b"1234"), "damaged header"),
        (damaged({"a": entry() | {"shape": ""}}, b"1234"), "damaged header"),
        (damaged({"a": entry(), "b": entry()}, b"1234"), "starts at byte 0"),
        (damaged({"a": {"dtype": "F32"}}, b"1234"), "damaged header"),
        ((20).to_bytes(8, "little") + b'{"a": {}, "a": {}}  ', "twice in it: a"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_damaged_files(tmp_path, content, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert words in str(error.value) and "x.safetensors" in str(error.value)


def test_a_tensor_without_elements_may_stand_anywhere(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"a": entry(), "none": entry(shape=(0, 3), offsets=(0, 0))}
    path.write_bytes(damaged(header, np.float32(2).tobytes()))
    reader = Reader([path])
    assert reader.read("a").tolist() == [2] and reader.read("none").shape == (0, 3)


def test_a_header_is_as_long_as_it_says():
    with pytest.raises(CheckpointError, match="file: damaged header: not as long as it says"):
        parse_header(damaged({"a": entry()}, length=3), "file")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in "xy":
        save_file({"a": np.zeros(1), name: np.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"in two files: a \(x, y\)"):
        Reader([tmp_path / "x", tmp_path / "y"])


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, name):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        find_files(tmp_path, "model")


def test_missing_files_and_broken_indices(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    assert find_files(tmp_path, "model") == []
    index.write_text(json.dumps({"weight_map": {"a": "m1.safetensors", "b": "m2.safetensors"}}))
    with pytest.raises(CheckpointError, match="names m1.safetensors, m2.safetensors"):
        find_files(tmp_path, "model")
    for text in ("{", "[]", '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="not a safetensors index"):
            find_files(tmp_path, "model")


def test_a_chunk_too_few_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="wrote 0 bytes"):
        write_file(tmp_path / "x", make_header({"a": Spec(np.dtype("f4"), (2,))}), iter(()))
