import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from zaya_jax.data.tokenizer import Stream, Tokenizer, cached_bpe, train_bpe

TEXT = "def f(x):\n    return 'Ω 語 😀'  # 123 <eos>\r\n\n\n\t\x00"


@settings(max_examples=150, deadline=None)
@given(st.text())
@example(TEXT)
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"])[0] == ids
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()
    assert tokenizer.bytes_per_id[ids].sum() == len(text.encode())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 319), max_size=40))
def test_stream_is_decode_in_pieces(tokenizer, ids):
    stream = Stream(tokenizer)
    pieces = [stream.push(i) for i in ids] + [stream.close()]
    assert "".join(pieces) == tokenizer.decode(ids)


def test_stream_holds_back_half_a_character(tokenizer):
    ids = tokenizer.encode("😀")
    assert len(ids) == 4  # the emoji is not in the corpus, so it is spelled in bytes
    stream = Stream(tokenizer)
    assert [stream.push(i) for i in ids] == ["", "", "", "😀"]


def test_special_ids_and_that_text_cannot_forge_them(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    forged = tokenizer.encode("<eos><pad><bos>")
    assert not {0, 1, 2} & set(forged)
    assert tokenizer.decode([*forged, 1]) == "<eos><pad><bos>"
    assert tokenizer.decode([1], keep_special=True) == "<eos>"
    assert not tokenizer.bytes_per_id[:3].any()


def test_training_is_deterministic(documents, tokenizer):
    texts = [document.text for document in documents]
    assert train_bpe(texts, 320).sha256 == tokenizer.sha256
    assert tokenizer.vocab_size == 320


def test_training_stops_early_on_a_tiny_text_and_refuses_tiny_vocabularies():
    assert train_bpe(["ab"], 1000).vocab_size < 1000
    with pytest.raises(ValueError, match="vocab_size is 100.*at least 259"):
        train_bpe(["ab"], 100)


def test_further_special_tokens_follow_the_three(tmp_path, documents):
    texts = [document.text for document in documents] + ["<a><|b|>"]
    made = train_bpe(texts, 322, ["<a>", "<|b|>"])
    assert (made.pad_id, made.eos_id, made.bos_id) == (0, 1, 2)
    assert (made.id_of("<a>"), made.id_of("<|b|>"), made.id_of("<c>")) == (3, 4, None)
    assert made.special_ids == {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<a>": 3, "<|b|>": 4}
    assert made.name_of(4) == "<|b|>" and made.vocab_size == 322
    assert not {3, 4} & set(made.encode("<a><|b|>"))
    made.save(tmp_path)
    assert Tokenizer.load(tmp_path).special_ids == made.special_ids
    with pytest.raises(ValueError, match="vocab_size is 260.*at least 261: 5 special tokens"):
        train_bpe(texts, 260, ["<a>", "<|b|>"])
    for wrong in (["<a>", "<a>"], ["<eos>"], [""]):
        with pytest.raises(ValueError, match="must be different and not empty"):
            train_bpe(texts, 322, wrong)


def test_offsets_tell_the_characters_of_each_id(tokenizer):
    ids, offsets = tokenizer.encode_with_offsets("def 😀")
    assert ids == tokenizer.encode("def 😀")
    assert offsets[0][0] == 0 and offsets[-1] == (4, 5)
    assert all(a[1] == b[0] or a == b for a, b in zip(offsets, offsets[1:], strict=False))


def test_cache_is_used_and_a_damaged_one_rebuilt(tmp_path, documents, tokenizer):
    texts = [document.text for document in documents]
    options = dict(corpus_sha256="0" * 64, folder=tmp_path)
    assert cached_bpe(texts, 320, **options).sha256 == tokenizer.sha256
    assert cached_bpe(iter(()), 320, **options).sha256 == tokenizer.sha256
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:1000])
    with pytest.warns(UserWarning, match="training the tokenizer again"):
        assert cached_bpe(texts, 320, **options).sha256 == tokenizer.sha256
    assert Tokenizer.load(file).sha256 == tokenizer.sha256
    chat = cached_bpe(texts, 320, **options, special_tokens=["<a>"])
    assert chat.id_of("<a>") == 3 and len(list(tmp_path.iterdir())) == 2


def test_saved_folder_loads_in_transformers(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    # An exported model's folder: its config must not make transformers pick another class.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "zaya"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = TEXT.replace("<eos>", "")
    assert theirs.encode(text) == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id) == (0, 1, 2)
    assert len(theirs) == tokenizer.vocab_size
    assert Tokenizer.load(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"ids \[320\] are not below the vocabulary's 320"):
        tokenizer.decode([5, 320])
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([-1])
    with pytest.raises(ValueError, match="320"):
        Stream(tokenizer).push(320)


def test_model_with_a_smaller_vocabulary_is_refused(tokenizer):
    tokenizer.check_fits(320)
    with pytest.raises(ValueError, match="319 is smaller than the tokenizer's 320"):
        tokenizer.check_fits(319)


def sentencepiece_like(eos="<eos>"):
    """The way Gemma's is built: U+2581 for spaces, single bytes as <0xNN>."""
    tokens = [eos, "\u2581", "a", "\u2581a", *(f"<0x{b:02X}>" for b in range(256))]
    backend = Backend(
        models.BPE({t: i for i, t in enumerate(tokens)}, [("\u2581", "a")], byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([eos])
    return backend


def test_a_sentencepiece_vocabulary_has_byte_lengths_and_streams(tmp_path):
    sentencepiece_like().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    ids = tokenizer.encode("a aé")
    assert tokenizer.bytes_per_id[ids].tolist() == [1, 2, 1, 1]
    stream = Stream(tokenizer)
    assert "".join([*map(stream.push, ids), stream.close()]) == tokenizer.decode(ids) == "a aé"
    assert tokenizer.bos_id is None and tokenizer.pad_id == tokenizer.eos_id == 0
    np.testing.assert_array_equal(tokenizer.bytes_per_id[:4], [0, 1, 1, 2])


def test_bad_tokenizer_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
    sentencepiece_like(eos="<stop>").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: no end-of-sequence token"):
        Tokenizer.load(tmp_path)


def test_special_tokens_are_those_that_the_settings_name(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    # ZAYA1-8B has <eos>, but a text ends with another token.
    settings.write_text(json.dumps({"eos_token": {"content": "<bos>"}, "pad_token": "<eos>"}))
    found = Tokenizer.load(tmp_path, eos_id=0)
    assert (found.eos_id, found.pad_id, found.bos_id) == (2, 1, 2)
    found.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").eos_id == 2
    settings.write_text('{"eos_token": null}')
    assert Tokenizer.load(tmp_path, eos_id=0).eos_id == 0
    assert Tokenizer.load(tmp_path).eos_id == 1
    for text, told in (
        ('{"eos_token": "<end>"}', "eos_token is '<end>', which is not in the vocabulary"),
        ("[]", "not a tokenizer's settings"),
    ):
        settings.write_text(text)
        with pytest.raises(ValueError, match=f"tokenizer_config.json: {told}"):
            Tokenizer.load(tmp_path)
    settings.unlink()
    with pytest.raises(ValueError, match="ids .320. are not below"):
        Tokenizer.load(tmp_path, eos_id=320)


def test_special_tokens_in_the_vocabulary_need_no_byte_alphabet():
    tokens = ["<eos>", "<|im end|>", "two words", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<|im end|>"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.token_bytes[:3] == (b"", b"", b"two words")
    assert tokenizer.decode([2]) == "two words"
    assert set(tokenizer.token_bytes[3:]) == {bytes([byte]) for byte in range(256)}
