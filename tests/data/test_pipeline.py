import dataclasses
import hashlib
import json
import math
import shutil

import numpy as np
import pytest

from zaya_jax.config import Data
from zaya_jax.data import encode
from zaya_jax.data import prepare as prepare_data
from zaya_jax.data.chat import SPECIAL_TOKENS
from zaya_jax.data.chat_template import CHATML
from zaya_jax.data.packing import in_order
from zaya_jax.data.readers import BadRecord
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.errors import UserError
from zaya_jax.train import workdir

SIZES = dict(vocab_size=320, sequence_length=32, batch_size=4, seed=3)
STEPS = (0, 1, 7, 100)


@pytest.fixture
def prepare(folder, tmp_path):
    """Prepares the small corpus, or what the arguments say; sizes and fields of `Data` alike."""

    def call(*, out=None, workers=0, **changed):
        sizes = {name: changed.pop(name, value) for name, value in SIZES.items()}
        fields = {"source": str(folder), "heldout_fraction": 0.1} | changed
        data = Data(cache_dir=str(tmp_path / "cache"), **fields)
        return prepare_data(data, out=out, workers=workers, **sizes)

    return call


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    """A JSONL of conversations, some of which think for long."""
    file = tmp_path_factory.mktemp("chats") / "chat.jsonl"
    file.write_text("".join(chat(i, "so " * (i % 40)) for i in range(60)))
    return file


def chat(number, thinking=""):
    messages = [
        {"role": "user", "content": f"What is {number} + 1?"},
        {"role": "assistant", "content": f"<think>{thinking}</think>{number + 1}"},
    ]
    return json.dumps({"messages": messages}) + "\n"


def ids(rows):
    """All tokens of rows, in their order."""
    return np.concatenate([b.tokens[b.segment_ids > 0] for b in in_order(rows)])


def same_batches(ours, theirs):
    """Asserts that training and held-out batches are bitwise the same."""
    pairs = [(ours.train.batch(step), theirs.train.batch(step)) for step in STEPS]
    pairs += zip(ours.heldout.batches, theirs.heldout.batches, strict=True)
    for a, b in pairs:
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
    assert ours.heldout.target_bytes == theirs.heldout.target_bytes


def content(path):
    """Names and bytes of all files below."""
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}


# --- One source ------------------------------------------------------------------------------


def test_prepare_accounts_for_every_document_and_byte(prepare, documents):
    prepared = prepare()
    info = prepared.info
    assert info.train.documents + info.heldout.documents == info.corpus.documents == len(documents)
    assert info.train.bytes + info.heldout.bytes == info.corpus.bytes
    assert json.loads(json.dumps(info.as_json())) == info.as_json()

    # Held-out text and held-out rows are the same thing, and nothing of it is trained on.
    decode = prepared.tokenizer.decode
    assert decode(ids(prepared.heldout.batches.rows)) == "".join(
        d.text for d in prepared.heldout.documents
    )
    trained = decode(ids(prepared.train.rows))
    names = {d.name for d in prepared.heldout.documents}
    assert trained == "".join(d.text for d in documents if d.name not in names)
    assert prepared.train.rows.pad_id == prepared.tokenizer.pad_id


def test_bits_per_byte_of_a_uniform_model_by_hand(prepare):
    prepared = prepare()
    heldout, tokenizer = prepared.heldout, prepared.tokenizer
    first_tokens = [tokenizer.encode(d.text)[0] for d in heldout.documents]
    text_bytes = sum(len(d.text.encode()) for d in heldout.documents)
    assert heldout.target_bytes == text_bytes - tokenizer.bytes_per_id[first_tokens].sum()
    weights = sum(batch.loss_weights.sum() for batch in heldout.batches)
    assert weights == heldout.targets
    uniform = heldout.targets * math.log(320)
    expected = heldout.targets * math.log2(320) / heldout.target_bytes
    assert heldout.bits_per_byte(uniform) == pytest.approx(expected)


def test_heldout_limit_shrinks_evaluation_and_not_training(prepare):
    whole = prepare()
    limited = prepare(heldout_max_bytes=300)
    assert limited.info.heldout.bytes <= 300 < whole.info.heldout.bytes
    assert limited.info.train == whole.info.train


def test_second_call_reads_the_cache_and_gives_the_same(prepare, monkeypatch):
    first = prepare()

    def never(*args, **kwargs):
        raise AssertionError("not from the cache")

    monkeypatch.setattr("zaya_jax.data.tokenizer.train_bpe", never)
    monkeypatch.setattr("zaya_jax.data.tokenizer.Tokenizer.encode_batch", never)
    # Row length and batch size are not in the key: they cost nothing to change.
    second = prepare(sequence_length=64, batch_size=2)
    np.testing.assert_array_equal(ids(first.train.rows), ids(second.train.rows))
    assert first.info.tokenizer_sha256 == second.info.tokenizer_sha256


def test_changed_text_is_not_served_from_the_cache(prepare, folder):
    before = prepare().info
    (folder / "module_99.py").write_text("print('new')\n" * 9)
    after = prepare().info
    assert before.corpus.sha256 != after.corpus.sha256
    assert after.train.bytes + after.heldout.bytes == after.corpus.bytes


@pytest.mark.parametrize("damage", ["truncated", "gone", "table", "index"])
def test_a_damaged_cache_is_made_again_with_a_warning(prepare, tmp_path, damage):
    first = prepare()
    (folder,) = (tmp_path / "cache").glob("examples-*")
    whole = content(folder)
    (shard,) = folder.glob("train-*.array_record")
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-500])
    elif damage == "gone":
        shard.unlink()
    elif damage == "table":
        shard.with_suffix(".npz").write_bytes(b"PK\0")
    else:
        (folder / "examples.index.json").write_text("{}")
    with pytest.warns(UserWarning, match="encoding again: .*damaged"):
        again = prepare()
    same_batches(again, first)
    assert content(folder).keys() == whole.keys()
    same_batches(prepare(), first)


def test_a_given_tokenizer_is_used_and_must_fit_the_model(prepare, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    path = str(tmp_path / "tokenizer")
    prepared = prepare(tokenizer=path, vocab_size=512)
    assert prepared.tokenizer.sha256 == tokenizer.sha256
    assert prepared.info.vocab_size == 320
    with pytest.raises(ValueError, match="300 is smaller than the tokenizer's 320"):
        prepare(tokenizer=path, vocab_size=300)


def test_a_slice_of_the_standard_library_end_to_end(prepare, tmp_path):
    import json.decoder
    from pathlib import Path

    source = Path(json.decoder.__file__).parent
    prepared = prepare(source=str(source), vocab_size=512, heldout_fraction=0.2)
    assert prepared.info.corpus.documents >= 5
    batch = prepared.train.batch(1000)
    assert batch.tokens.shape == (4, 32) and batch.tokens.max() < 512
    assert not list((tmp_path / "cache").rglob(".*-*"))


# --- Chats -----------------------------------------------------------------------------------


def test_chats_are_learnt_from_where_the_assistant_speaks(prepare, chats):
    prepared = prepare(source=str(chats), packing="best_fit", sequence_length=48)
    train = prepared.info.train
    assert train.kept and train.trimmed and not train.dropped and not train.cut
    decode = prepared.tokenizer.decode
    for batch in in_order(prepared.train.rows):
        for row in range(len(batch.tokens)):
            for segment in range(1, batch.segment_ids[row].max() + 1):
                there = batch.segment_ids[row] == segment
                whole = decode(batch.tokens[row][there], keep_special=True)
                learnt = decode(batch.targets[row][there & (batch.loss_weights[row] > 0)],
                                keep_special=True)  # fmt: skip
                number = int(whole.split("What is ")[1].split()[0])
                assert learnt.startswith("<think>")
                assert learnt.endswith(f"</think>{number + 1}<|im_end|>")
                assert whole.startswith("<|im_start|>user")


def test_one_preparation_serves_every_context_length(prepare, chats, tmp_path):
    longer = prepare(source=str(chats), packing="best_fit", sequence_length=256)
    before = content(tmp_path / "cache")
    shorter = prepare(source=str(chats), packing="best_fit", sequence_length=48)
    assert content(tmp_path / "cache") == before
    assert longer.info.train.trimmed == 0 < shorter.info.train.trimmed
    assert longer.info.train.tokens == shorter.info.train.tokens


BAD_CHATS = [
    ('{"messages": [', "line 3: not JSON"),
    (chat(1).replace("</think>", ""), "chat.jsonl:3: .*<think>"),
    (json.dumps({"messages": [{"role": "user", "content": "hi"}]}), "chat.jsonl:3: .*assistant"),
    (
        json.dumps({"messages": [{"role": "user", "content": "hi"},
                                 {"role": "assistant", "content": ""}]}),
        "chat.jsonl:3: .*assistant",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_CHATS)
def test_bad_chats_are_named_by_file_and_line_or_skipped_and_counted(
    prepare, tmp_path, line, message
):
    lines = [chat(i, "hm") for i in range(30)]
    lines.insert(2, line.strip() + "\n")
    (tmp_path / "chat.jsonl").write_text("".join(lines))
    options = dict(source=str(tmp_path / "chat.jsonl"), heldout_fraction=0.2)
    with pytest.raises(BadRecord, match=f"{tmp_path}.*{message}.*on_bad_record = 'skip'"):
        prepare(**options)
    info = prepare(**options, on_bad_record="skip").info
    assert info.corpus.bad + info.train.bad + info.heldout.bad == 1
    assert info.train.documents + info.heldout.documents == 30


def test_chats_larger_than_any_row_are_dropped_and_counted(prepare, chats, tmp_path):
    # Numbers in which there is nothing for the tokenizer to learn; the answers are as long.
    long = [chat(int(hashlib.sha256(bytes([i])).hexdigest(), 16)) for i in range(7)]
    (tmp_path / "chat.jsonl").write_text("".join([chats.read_text(), *long]))
    info = prepare(source=str(tmp_path / "chat.jsonl"), packing="best_fit", sequence_length=40).info
    assert info.train.dropped + info.heldout.dropped == 7
    with pytest.raises(ValueError, match="none of the examples .* fits in 8 tokens"):
        prepare(source=str(chats), packing="best_fit", sequence_length=8)


def test_a_tokenizer_without_control_tokens_is_refused_whatever_the_rules(
    prepare, chats, tokenizer, tmp_path
):
    tokenizer.save(tmp_path / "plain")
    with pytest.raises(UserError, match="lacks special tokens.*<|im_start|>"):
        prepare(source=str(chats), tokenizer=str(tmp_path / "plain"), on_bad_record="skip")


# --- Mixtures --------------------------------------------------------------------------------


@pytest.fixture
def mixture(folder, chats):
    return (str(folder), 3.0), (str(chats), 1.0)


def test_a_mixture_records_every_source(prepare, mixture):
    prepared = prepare(mixture=mixture, packing="best_fit", sequence_length=64)
    info = prepared.info.as_json()
    assert list(info["sources"]) == [source for source, _ in mixture]
    assert [s["weight"] for s in info["sources"].values()] == [0.75, 0.25]
    assert len({s["corpus"]["sha256"] for s in info["sources"].values()}) == 2
    for part in ("train", "heldout"):
        for field in ("documents", "tokens", "rows", "packed", "trimmed"):
            parts = [source[part][field] for source in info["sources"].values()]
            assert info[part][field] == sum(parts)
    whole = prepared.heldout
    assert list(whole.sources) == [source for source, _ in mixture]
    assert whole.target_bytes == sum(s.target_bytes for s in whole.sources.values())
    weights = sum(batch.loss_weights.sum() for batch in whole.batches)
    assert weights == whole.targets == sum(s.targets for s in whole.sources.values())
    assert json.loads(json.dumps(info)) == info


def test_a_resumed_run_refuses_a_mixture_with_a_changed_source(prepare, mixture, folder, tmp_path):
    def info():
        return prepare(mixture=mixture, packing="best_fit", sequence_length=64).info.as_json()

    run = tmp_path / "run"
    workdir.check_data(run, info())
    workdir.check_data(run, info())
    file = folder / "module_03.py"
    file.write_text(file.read_text().replace("return", "yield"))
    with pytest.raises(UserError, match=r"data changed(.|\n)*corpus\.sha256"):
        workdir.check_data(run, info())


def test_a_resumed_run_goes_on_if_its_rows_are_the_same(prepare, folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    before = prepare().info
    workdir.check_data(run, before.as_json())
    (folder / "module_03.py").rename(folder / "module_03a.py")  # stays where it is in the order
    monkeypatch.setattr(encode, "VERSION", encode.VERSION + 1)
    after = prepare().info
    assert after.corpus.sha256 != before.corpus.sha256
    assert len(list((tmp_path / "cache").glob("examples-*"))) == 2
    workdir.check_data(run, after.as_json())
    # Rows that are cut in another way are other rows, be the examples the same.
    with pytest.raises(UserError, match="rows_sha256"):
        workdir.check_data(run, prepare(packing="best_fit").info.as_json())


@pytest.mark.parametrize("weight", [0, -1.0, math.inf, math.nan])
def test_weights_must_be_positive(prepare, folder, chats, weight):
    with pytest.raises(ValueError, match="has weight .*: expected more than 0"):
        prepare(mixture=((str(folder), 1.0), (str(chats), weight)))


def test_a_source_cannot_be_there_twice(prepare, folder):
    with pytest.raises(ValueError, match="is there twice"):
        prepare(mixture=((str(folder), 1.0), (str(folder), 2.0)))


def test_weights_that_change_are_a_part_of_what_the_data_was(prepare, mixture, tmp_path):
    """In `data.json`, so that a resumed run cannot have others; the rest of it is the same."""
    constant = prepare(mixture=mixture).info
    assert constant.schedule == () and constant.as_json()["schedule"] == []
    shifted = prepare(mixture=mixture, mixture_schedule=((2, (0.0, 5.0)), (9, (1.0, 1.0)))).info
    assert shifted.schedule == ((2, (0.0, 1.0)), (9, (0.5, 0.5)))
    assert json.loads(json.dumps(shifted.as_json())) == shifted.as_json()
    assert dataclasses.replace(shifted, schedule=()) == constant
    later = prepare(mixture=mixture, mixture_schedule=((3, (0.0, 5.0)), (9, (1.0, 1.0)))).info
    assert len({info.rows_sha256 for info in (constant, shifted, later)}) == 3
    run = tmp_path / "run"
    workdir.check_data(run, shifted.as_json())
    with pytest.raises(UserError, match=r"data changed(.|\n)*schedule"):
        workdir.check_data(run, later.as_json())


def test_prepared_sources_follow_a_schedule_as_the_raw_ones_do(prepare, mixture, tmp_path):
    options = dict(packing="best_fit", sequence_length=48)
    shift = ((1, (0.0, 1.0)), (7, (2.0, 1.0)))
    raw = prepare(mixture=mixture, mixture_schedule=shift, **options)
    prepare(mixture=mixture, mixture_schedule=shift, out=tmp_path / "out", **options)
    out = str(tmp_path / "out")
    same_batches(prepare(source=out, mixture=mixture, mixture_schedule=shift, **options), raw)
    # In another order of the sources the weights go with their names.
    turned = tuple((step, weights[::-1]) for step, weights in shift)
    again = prepare(source=out, mixture=mixture[::-1], mixture_schedule=turned, **options)
    same_batches(again, raw)
    # Inside of another mixture its sources divide its weight.
    nested = prepare(mixture=((out, 1.0),), mixture_schedule=((3, (1.0,)),), **options)
    assert len(nested.info.schedule[0][1]) == 2
    same_batches(nested, prepare(mixture=mixture, **options))
    with pytest.raises(ValueError, match="there is no data.mixture whose weights could change"):
        prepare(source=out, mixture_schedule=shift, **options)


# --- Prepared offline ------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_prepared_data_gives_bitwise_the_batches_of_the_raw_source(
    prepare, mixture, tmp_path, packing
):
    options = dict(packing=packing, sequence_length=48, heldout_max_bytes=2000)
    raw = prepare(mixture=mixture, **options)
    prepare(mixture=mixture, out=tmp_path / "out", **options)
    prepared = prepare(source=str(tmp_path / "out"), **options)
    same_batches(prepared, raw)
    assert prepared.info == raw.info
    assert prepared.tokenizer.sha256 == raw.tokenizer.sha256
    # The mixture may stay in the config; and one of its sources can serve alone.
    same_batches(prepare(source=str(tmp_path / "out"), mixture=mixture, **options), raw)
    alone = prepare(source=str(next((tmp_path / "out").glob("1-*"))), **options)
    assert alone.info.sources[0].corpus == raw.info.sources[1].corpus


def test_prepared_data_is_not_taken_for_what_it_is_not(prepare, mixture, folder, tmp_path):
    out = tmp_path / "out"
    prepare(mixture=mixture, out=out)
    source = str(out)
    with pytest.raises(ValueError, match="was prepared of the mixture"):
        prepare(source=source, mixture=(mixture[0], (mixture[1][0], 2.0)))
    with pytest.raises(ValueError, match="heldout_fraction = 0.1 .* the config has 0.2"):
        prepare(source=source, heldout_fraction=0.2)
    train_bpe(["abc"], 320, SPECIAL_TOKENS).save(tmp_path / "other")
    with pytest.raises(ValueError, match="prepared with another tokenizer"):
        prepare(source=source, tokenizer=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="smaller than the tokenizer's"):
        prepare(source=source, vocab_size=300)
    template = tmp_path / "other.jinja"
    template.write_text(CHATML.read_text() + "{# another #}")
    with pytest.raises(ValueError, match="1-chat.* with another chat template than .*other.jinja"):
        prepare(source=source, chat_template=str(template))
    prepare(source=source, chat_template=str(CHATML))
    prepare(source=str(next(out.glob("0-*"))), chat_template=str(template))  # has no chats
    settings = json.loads((out / "0-corpus" / "tokenizer" / "tokenizer_config.json").read_text())
    shutil.copytree(out / "0-corpus" / "tokenizer", tmp_path / "ending")
    settings["eos_token"] = "<|im_end|>"
    (tmp_path / "ending" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="with the end-of-sequence id 1, the tokenizer says 4"):
        prepare(source=source, tokenizer=str(tmp_path / "ending"))
    shard = next(out.glob("0-*/train-*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        prepare(source=source)
    (out / "mixture.index.json").write_text("[]")
    with pytest.raises(ValueError, match="mixture.index.json is damaged"):
        prepare(source=source)
