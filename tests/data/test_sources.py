import gzip
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.data.sources import (
    Document,
    fingerprint,
    limit_bytes,
    read_corpus,
    split_documents,
)

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

texts = st.lists(st.text(min_size=1), min_size=2, max_size=30).filter(lambda t: len(set(t)) > 1)


def named(texts):
    return [Document(str(i), text) for i, text in enumerate(texts)]


# --- Readers ---------------------------------------------------------------------------------


def test_stdlib_is_the_library_and_not_its_tests():
    documents, info = read_corpus("stdlib")
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert "json/decoder.py" in names and "argparse.py" in names
    assert not any("test" in name.split("/")[:-1] for name in names)
    assert not any("site-packages" in name for name in names)
    assert info.documents == len(documents) > 400
    assert info.bytes == sum(len(document.text.encode()) for document in documents)
    assert "Python 3" in info.source
    assert json.loads(json.dumps(vars(info))) == vars(info)


def test_stdlib_honours_declared_encodings_and_counts_what_it_cannot_read(tmp_path, monkeypatch):
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\nname = 'Gödel'\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"# coding: utf-8\nname = '\xff'\n")
    (tmp_path / "unheard.py").write_bytes(b"# coding: of-mars\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    documents, info = read_corpus("stdlib")
    assert [document.name for document in documents] == ["latin.py"]
    assert "Gödel" in documents[0].text
    assert info.skipped == 2


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "a").mkdir(parents=True)
    elsewhere.mkdir()
    (root / "a" / "one.txt").write_text("1")
    (elsewhere / "two.txt").write_text("2")
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere)
    (root / "a" / "up").symlink_to(root)
    documents, _ = read_corpus(str(root))
    assert documents == [("a/one.txt", "1"), ("b/two.txt", "2")]


def test_folder_is_read_recursively_sorted_and_without_hidden_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "two.txt").write_text("2")
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "c.jsonl").write_text('{"text": "3"}\n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / ".git" / "config").write_bytes(b"\xff")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    (tmp_path / "b" / "__pycache__").mkdir()
    (tmp_path / "b" / "__pycache__" / "two.pyc").write_bytes(b"\xff")
    documents, info = read_corpus(str(tmp_path))
    assert documents == [("a.txt", "1"), ("b/two.txt", "2"), ("c.jsonl:1", "3")]
    assert info.empty == 1


def test_single_text_file_becomes_pieces_and_loses_nothing(tmp_path):
    text = "".join(f"line {i}\r\n" if i % 9 else "\n" for i in range(9999))
    (tmp_path / "book.txt").write_bytes(text.encode())
    documents, _ = read_corpus(str(tmp_path / "book.txt"))
    assert "".join(document.text for document in documents) == text
    assert 30 < len(documents) <= 65
    assert all(document.text.endswith("\n\n") for document in documents[:-1])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl(tmp_path, name):
    data = '{"text": "eins\\n", "n": 1}\n\n{"n": 2, "text": "\\ud83d\\ude00ё"}\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    documents, _ = read_corpus(str(tmp_path / name))
    assert documents == [(f"{name}:1", "eins\n"), (f"{name}:3", "😀ё")]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
def test_parquet_with_another_column_name_and_nulls(tmp_path, kind):
    column = pyarrow.array([b"one", None, "zwölf".encode()], pyarrow.binary()).cast(kind)
    parquet.write_table(pyarrow.table({"body": column, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    documents, info = read_corpus(str(tmp_path / "a.parquet"), text_field="body")
    assert documents == [("a.parquet:0", "one"), ("a.parquet:2", "zwölf")]
    assert info.empty == 1


# --- Bad input -------------------------------------------------------------------------------


@pytest.fixture
def bad_text(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"four\xff")
    (tmp_path / "good.txt").write_text("fine")
    return tmp_path


def test_strict_names_file_byte_and_remedy(bad_text):
    with pytest.raises(ValueError, match=r"bad\.txt: byte 4 \(0xff\).*on_bad_text.*skip.*replace"):
        read_corpus(str(bad_text))


def test_skip_leaves_the_document_out_and_counts_it(bad_text):
    documents, info = read_corpus(str(bad_text), errors="skip")
    assert [d.name for d in documents] == ["good.txt"]
    assert (info.skipped, info.replaced) == (1, 0)


def test_replace_marks_the_byte_and_counts_the_document(bad_text):
    documents, info = read_corpus(str(bad_text), errors="replace")
    assert documents[0].text == "four\ufffd"
    assert (info.skipped, info.replaced) == (0, 1)


def test_bad_byte_in_jsonl_is_located_in_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: byte 25 \(0xff\)"):
        read_corpus(str(tmp_path / "a.jsonl"))
    assert read_corpus(str(tmp_path / "a.jsonl"), errors="skip").info.skipped == 1


def test_half_a_surrogate_pair_in_json_is_bad_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n{"text": "ok"}\n')
    with pytest.raises(ValueError, match="line 1.*not UTF-8"):
        read_corpus(str(tmp_path / "a.jsonl"))
    assert read_corpus(str(tmp_path / "a.jsonl"), errors="skip").documents == [("a.jsonl:2", "ok")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', "line 2: not JSON"),
        ("[" * 200_000, "line 2: not JSON"),
        ('["text"]', "line 2: a list, not an object"),
        ('{"body": "x", "id": 1}', "line 2: no field 'text'; there is 'body', 'id'"),
        ('{"text": 5}', "line 2: 'text' is a int, not a string"),
    ],
)
def test_bad_json_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_corpus(str(tmp_path / "a.jsonl"))


def test_truncated_gzip_names_the_file(tmp_path):
    whole = gzip.compress(b'{"text": "ok"}\n' * 100)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: damaged"):
        read_corpus(str(tmp_path / "a.jsonl.gz"))


def test_parquet_errors(tmp_path, monkeypatch):
    parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'text'; there is body, n"):
        read_corpus(path)
    with pytest.raises(ValueError, match="'n' holds int64"):
        read_corpus(path, text_field="n")
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: not a Parquet file"):
        read_corpus(str(tmp_path / "b.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        read_corpus(path)


def test_empty_missing_and_unsupported_sources(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}.*has no text: looked for files"):
        read_corpus(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no corpus at .*/nowhere'"):
        read_corpus(str(tmp_path / "nowhere"))
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    with pytest.raises(ValueError, match="Zstandard"):
        read_corpus(str(tmp_path))
    with pytest.raises(ValueError, match="on_bad_text is 'ignore'; accepted: strict"):
        read_corpus(str(tmp_path), errors="ignore")


# --- Fingerprint and split -------------------------------------------------------------------


def test_fingerprint_sees_names_texts_order_and_borders():
    base = [Document("ab", "cd"), Document("e", "f")]
    others = [
        base[::-1],
        [Document("a", "bcd"), base[1]],
        [Document("ab", "cde"), Document("", "f")],
        base[:1],
    ]
    hashes = {fingerprint(documents) for documents in [base, *others]}
    assert len(hashes) == 5
    assert fingerprint(list(base)) == fingerprint(base)


@settings(max_examples=60, deadline=None)
@given(texts, st.floats(0.001, 0.999))
def test_split_is_a_partition_without_leaks(texts, fraction):
    documents = named(texts)
    train, heldout = split_documents(documents, fraction)
    assert train and heldout
    assert sorted(train + heldout) == sorted(documents)
    assert not {d.text for d in train} & {d.text for d in heldout}


def test_split_holds_out_about_the_fraction_and_is_stable_under_growth():
    documents = named(f"text {i}" for i in range(4000))
    heldout = set(split_documents(documents, 0.1).heldout)
    assert 300 < len(heldout) < 500
    assert set(split_documents(documents[:2000], 0.1).heldout) == heldout & set(documents[:2000])


@pytest.mark.parametrize("texts", [[], ["one"], ["same", "same"]])
def test_split_needs_two_texts(texts):
    with pytest.raises(ValueError, match="cannot be split"):
        split_documents(named(texts), 0.5)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_split_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="heldout_fraction"):
        split_documents(named(["a", "b"]), fraction)


def test_limit_bytes_takes_whole_documents_while_they_fit():
    documents = named("é" * n for n in range(1, 40))
    chosen = limit_bytes(documents, 300)
    total = sum(d.bytes for d in chosen)
    assert total <= 300 < total + min(d.bytes for d in documents if d not in chosen)
    assert chosen == [d for d in documents if d in chosen] != documents[: len(chosen)]
    assert limit_bytes(documents[::-1], 300) == chosen[::-1]
    assert limit_bytes(documents, 1) == documents[:1]
    assert limit_bytes(documents, None) == documents
