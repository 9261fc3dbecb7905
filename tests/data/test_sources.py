import gzip
import json
import os
import re
import sys

import pytest
import zstandard

from zaya_jax.data import split
from zaya_jax.data.readers import BadRecord, Conversation, Document, Rules
from zaya_jax.data.sources import fingerprint, read, survey

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def read_corpus(source, **rules):
    """All records of a source, and what `survey` says of it."""
    rules = Rules(**rules)
    return list(read(source, rules)), survey(source, rules).info


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


def test_names_that_are_no_text_are_read_all_the_same(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "wb") as file:
        file.write(b"x")
    (tmp_path / "\\udcff.jsonl").write_text('{"text": "y"}')
    documents, info = read_corpus(str(tmp_path))
    assert documents == [("\\udcff.jsonl:1", "y"), ("\\xff.txt", "x")]
    assert info.documents == 2


def test_a_byte_order_mark_before_json_lines_is_no_part_of_them(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    assert [d.text for d in read_corpus(str(tmp_path / "a.jsonl"))[0]] == ["a", "b"]


def test_single_text_file_becomes_pieces_and_loses_nothing(tmp_path):
    text = "".join(f"line {i}\r\n" if i % 9 else "\n" for i in range(9999))
    (tmp_path / "book.txt").write_bytes(text.encode())
    documents, _ = read_corpus(str(tmp_path / "book.txt"))
    assert "".join(document.text for document in documents) == text
    assert 30 < len(documents) <= 65
    assert all(document.text.endswith("\n\n") for document in documents[:-1])


def zstd(data):
    """Two frames, as parallel compressors write."""
    half = len(data) // 2
    return b"".join(zstandard.ZstdCompressor().compress(d) for d in (data[:half], data[half:]))


@pytest.mark.parametrize(
    ("name", "compress"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)]
)
def test_jsonl(tmp_path, name, compress):
    data = '{"text": "eins\\n", "n": 1}\n\n{"n": 2, "text": "\\ud83d\\ude00ё"}\n'.encode()
    (tmp_path / name).write_bytes(compress(data))
    documents, _ = read_corpus(str(tmp_path / name))
    assert documents == [(f"{name}:1", "eins\n"), (f"{name}:3", "😀ё")]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
def test_parquet_with_another_column_name_and_nulls(tmp_path, kind):
    column = pyarrow.array([b"one", None, "zwölf".encode()], pyarrow.binary()).cast(kind)
    parquet.write_table(pyarrow.table({"body": column, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    documents, info = read_corpus(str(tmp_path / "a.parquet"), text_field="body")
    assert documents == [("a.parquet:0", "one"), ("a.parquet:2", "zwölf")]
    assert info.empty == 1


def test_the_fields_of_a_record_say_whether_it_is_a_chat(tmp_path):
    both = {"messages": HELLO, "text": "hi hello", "tools": [{"name": "f"}]}
    lines = [{"text": "hi"}, {"messages": HELLO}, both, {"messages": json.dumps(HELLO)}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    records, info = read_corpus(str(tmp_path / "a.jsonl"))
    assert records == [
        Document("a.jsonl:1", "hi"),
        Conversation("a.jsonl:2", HELLO),
        Conversation("a.jsonl:3", HELLO, [{"name": "f"}]),
        Conversation("a.jsonl:4", HELLO),
    ]
    assert info.bytes == sum(len(record.content.encode()) for record in records)
    texts, _ = read_corpus(str(tmp_path / "a.jsonl"), format="text", on_bad_record="skip")
    assert [record.name for record in texts] == ["a.jsonl:1", "a.jsonl:3"]
    chats, _ = read_corpus(str(tmp_path / "a.jsonl"), format="chat", on_bad_record="skip")
    assert [record.name for record in chats] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]


def test_chats_in_parquet_lose_the_nulls_of_absent_fields(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]}
    table = pyarrow.table({"talk": [HELLO, [HELLO[0], call]], "n": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    records, _ = read_corpus(str(tmp_path / "a.parquet"), messages_field="talk")
    assert records == [
        Conversation("a.parquet:0", HELLO),
        Conversation("a.parquet:1", [HELLO[0], call]),
    ]


def test_long_lines_are_read_whole(tmp_path):
    text = "x" * 3_000_000
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{text}"}}\n{{"text": "end"}}')
    documents, _ = read_corpus(str(tmp_path / "a.jsonl"))
    assert [len(document.text) for document in documents] == [3_000_000, 3]


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
    documents, info = read_corpus(str(bad_text), on_bad_text="skip")
    assert [d.name for d in documents] == ["good.txt"]
    assert (info.skipped, info.replaced) == (1, 0)


def test_replace_marks_the_byte_and_counts_the_document(bad_text):
    documents, info = read_corpus(str(bad_text), on_bad_text="replace")
    assert documents[0].text == "four\ufffd"
    assert (info.skipped, info.replaced) == (0, 1)


def test_bad_byte_in_jsonl_is_located_in_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: byte 25 \(0xff\)"):
        read_corpus(str(tmp_path / "a.jsonl"))
    assert read_corpus(str(tmp_path / "a.jsonl"), on_bad_text="skip")[1].skipped == 1


def test_half_a_surrogate_pair_in_json_is_bad_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n{"text": "ok"}\n')
    with pytest.raises(ValueError, match="line 1.*not UTF-8"):
        read_corpus(str(tmp_path / "a.jsonl"))
    assert read_corpus(str(tmp_path / "a.jsonl"), on_bad_text="skip")[0] == [("a.jsonl:2", "ok")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', "line 2: not JSON"),
        ("[" * 200_000, "line 2: not JSON"),
        ('{"text": ' + "1" * 5000 + "}", "line 2: not JSON that can be read: Exceeds the limit"),
        ('{"messages": [{"content": ' + "[" * 600 + "]" * 600 + "}]}", "line 2: .* too deep"),
        ('["text"]', "line 2: a list, not an object"),
        ('{"body": "x", "id": 1}', "line 2: no field 'text' or 'messages'; there is 'body', 'id'"),
        ('{"text": 5}', "line 2: 'text' is a int, not a string"),
        ('{"messages": "[}"}', "line 2: 'messages': not JSON"),
        ('{"messages": {}}', "line 2: 'messages' is a dict, expected a list of objects"),
        ('{"messages": ["hi"]}', "line 2: 'messages' is a list, expected a list of objects"),
        ('{"messages": [], "tools": 1}', "line 2: 'tools' is a int, expected a list of objects"),
        ('{"messages": [{"content": "\\ud83d"}]}', "line 2: 'messages' holds half of a surrogate"),
    ],
)
def test_bad_json_line_is_named_or_skipped_and_counted(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n' + line + '\n{"text": "fine"}\n')
    with pytest.raises(BadRecord, match=rf"a\.jsonl, {message}.*on_bad_record = 'skip'"):
        read_corpus(str(tmp_path / "a.jsonl"))
    documents, info = read_corpus(str(tmp_path / "a.jsonl"), on_bad_record="skip")
    assert documents == [("a.jsonl:1", "ok"), ("a.jsonl:3", "fine")]
    assert info.bad == 1


@pytest.mark.parametrize("rule", ["fail", "skip"])
@pytest.mark.parametrize(("end", "compress"), [("gz", gzip.compress), ("zst", zstd)])
@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: b"\0" * 40 + data])
def test_damaged_archives_name_the_file_whatever_the_rules(tmp_path, end, compress, damage, rule):
    file = tmp_path / f"a.jsonl.{end}"
    file.write_bytes(damage(compress(b'{"text": "ok"}\n' * 100)))
    with pytest.raises(ValueError, match=rf"a\.jsonl\.{end}: damaged"):
        read_corpus(str(file), on_bad_record=rule)


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
    (tmp_path / "a.tar.zst").write_bytes(b"")
    with pytest.raises(ValueError, match="only .jsonl.zst is read"):
        read_corpus(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("on_bad_text", "ignore", "on_bad_text is 'ignore'; there are: strict, skip, replace"),
        ("on_bad_record", "skp", "on_bad_record is 'skp'; did you mean skip?"),
        ("format", "txt", "format is 'txt'; did you mean text?"),
    ],
)
def test_unknown_rules(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Rules(**{field: value})


# --- Fingerprint -----------------------------------------------------------------------------


def test_copies_whose_keys_are_in_another_order_are_told_apart_but_not_parted():
    calls = [{"tool_calls": [{"name": "f", "arguments": dict(pairs)}]}
             for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)])]  # fmt: skip
    a, b = (Conversation("x", [call]) for call in calls)
    assert fingerprint([a]) != fingerprint([b])  # a template writes them in their order
    assert split.place(a.content) == split.place(b.content)  # both held out, or neither


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
