"""Byte-level BPE: trained on the corpus at hand, or read from any `tokenizer.json`.

Text and ids are kept apart: text that happens to contain `<eos>` is encoded as the five
characters it is, so data cannot forge a control token.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from zaya_jax.data.cache import atomic_path

SETTINGS = "tokenizer_config.json"
PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
SMALLEST_VOCABULARY = 3 + 256
"""The special tokens and one token for every byte."""

_KNOWN_NAMES = {
    "eos": (EOS, "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>"),
    "bos": (BOS, "<s>", "<|begin_of_text|>", "<|startoftext|>"),
    "pad": (PAD, "[PAD]", "<|pad|>"),
}


class Tokenizer:
    """Text to ids and back.

    Attributes:
        vocab_size: ids are below this.
        eos_id: closes a document.
        bos_id: opens one, for models that want it; None if the vocabulary has none.
        pad_id: fills rows; the end-of-sequence id if the vocabulary has none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        ids: Mapping[str, int] | None = None,
        name: str = "tokenizer",
    ):
        """Wraps a tokenizer of the `tokenizers` library.

        Args:
            backend: the tokenizer; its handling of special tokens in text is switched off.
            ids: of the roles `eos`, `bos` and `pad` where they are known; the others are looked
                for under the usual names.
            name: how to call it in messages.

        Raises:
            ValueError: no end-of-sequence token is given or has a usual name, or a given id is
                outside the vocabulary.
        """
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size()
        ids = dict(ids or {})
        for role, names in _KNOWN_NAMES.items():
            found = (backend.token_to_id(token) for token in names)
            if role not in ids and (known := [i for i in found if i is not None]):
                ids[role] = known[0]
        if "eos" not in ids:
            raise ValueError(
                f"{name}: no end-of-sequence token; name it in the eos_token of a {SETTINGS} "
                f"beside it (known without: {', '.join(_KNOWN_NAMES['eos'])})"
            )
        self.check_ids(ids.values())
        self.eos_id: int = ids["eos"]
        self.bos_id: int | None = ids.get("bos")
        self.pad_id: int = ids.get("pad", self.eos_id)

    def __reduce__(self) -> tuple:  # to worker processes goes the definition
        ids = {"eos": self.eos_id, "bos": self.bos_id, "pad": self.pad_id}
        given = {role: value for role, value in ids.items() if value is not None}
        return _of_definition, (self._backend.to_str(), given)

    @classmethod
    def load(cls, path: Path | str, *, eos_id: int | None = None) -> Tokenizer:
        """Reads a `tokenizer.json`, or the one in a folder.

        Which tokens are special says the `tokenizer_config.json` beside it; where that is silent,
        `eos_id` (a model knows its own), and then their usual names.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it cannot be read, or has no end-of-sequence token.
        """
        path = Path(path).expanduser()
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"no tokenizer at {file}: give a tokenizer.json or its folder")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # The library raises the bare class.
            raise ValueError(f"{file}: not a tokenizer.json: {error}") from None
        ids = {} if eos_id is None else {"eos": eos_id}
        if file.name == "tokenizer.json":
            ids |= _ids_of_settings(file.with_name(SETTINGS), backend)
        return cls(backend, ids=ids, name=str(file))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts on all cores."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [item.ids for item in encoded]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and for each id the characters (start, stop) of the text that it covers."""
        encoded = self._backend.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of ids; broken UTF-8 becomes U+FFFD.

        Args:
            ids: token ids.
            keep_special: write special tokens by name instead of leaving them out.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        self.check_ids(ids)
        return self._backend.decode(ids, skip_special_tokens=not keep_special)

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises ValueError if an id is outside the vocabulary."""
        outside = [i for i in ids if not 0 <= i < self.vocab_size]
        if outside:
            raise ValueError(f"ids {outside[:5]} are not below the vocabulary's {self.vocab_size}")

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Names and ids of the tokens that no text is encoded to."""
        added = self._backend.get_added_tokens_decoder().items()
        return {token.content: i for i, token in added if token.special}

    @cached_property
    def swallows_space(self) -> dict[str, tuple[bool, bool]]:
        """By name, added tokens that take in white space: whether (before, after) them."""
        added = self._backend.get_added_tokens_decoder().values()
        return {t.content: (t.lstrip, t.rstrip) for t in added if t.lstrip or t.rstrip}

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name; None if it is not one token of the vocabulary."""
        return self._backend.token_to_id(token)

    def name_of(self, token_id: int) -> str:
        """The name of a token; raises ValueError for an id outside the vocabulary."""
        self.check_ids([token_id])
        return self._backend.id_to_token(token_id) or ""

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes that each id stands for; none for special tokens.

        Exact for byte-level vocabularies. In SentencePiece-like ones U+2581 counts as a space.
        """
        to_bytes = _byte_level if _is_byte_level(self._backend) else _sentencepiece
        table = [b""] * self.vocab_size
        added = self._backend.get_added_tokens_decoder()  # some are in the vocabulary as well
        for i, token in added.items():
            table[i] = b"" if token.special else token.content.encode()
        for word, i in self._backend.get_vocab(with_added_tokens=False).items():
            if i not in added:
                table[i] = to_bytes(word)
        return tuple(table)

    @cached_property
    def bytes_per_id(self) -> np.ndarray:
        """[vocab_size] int32, the lengths of `token_bytes`."""
        return np.array([len(data) for data in self.token_bytes], np.int32)

    @cached_property
    def sha256(self) -> str:
        """Hash (hex) of the whole definition."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def check_fits(self, vocab_size: int) -> None:
        """Raises ValueError if a model with `vocab_size` embeddings lacks some of the ids."""
        if vocab_size < self.vocab_size:
            raise ValueError(
                f"the model's vocab_size {vocab_size} is smaller than the tokenizer's "
                f"{self.vocab_size}: raise the one, or train or choose a smaller tokenizer"
            )

    def save(self, folder: Path | str) -> None:
        """Writes what `transformers.AutoTokenizer.from_pretrained(folder)` loads."""
        folder = Path(folder)
        self.save_file(folder / "tokenizer.json")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "eos_token": self._backend.id_to_token(self.eos_id),
            "pad_token": self._backend.id_to_token(self.pad_id),
        }
        if self.bos_id is not None:
            settings["bos_token"] = self._backend.id_to_token(self.bos_id)
        with atomic_path(folder / SETTINGS) as scratch:
            scratch.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def save_file(self, path: Path) -> None:
        """Writes the `tokenizer.json` alone."""
        with atomic_path(path) as scratch:
            self._backend.save(str(scratch))


class Stream:
    """Decodes ids one by one for a terminal, holding back characters that are not complete.

    The pieces joined are `tokenizer.decode` of all ids, for byte-level vocabularies exactly.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Text that has become certain with this id; may be empty. Special tokens are silent."""
        self._tokenizer.check_ids([token_id])
        return self._decoder.decode(self._tokenizer.token_bytes[token_id])

    def close(self) -> str:
        """What is left at the end: U+FFFD for a character that was begun only."""
        return self._decoder.decode(b"", final=True)


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()
) -> Tokenizer:
    """Trains a byte-level BPE; the same texts in the same order give the same tokenizer.

    Ids: 0 `<pad>`, 1 `<eos>`, 2 `<bos>`, further special tokens, the 256 bytes, then merges. All
    bytes are in the vocabulary, so every text can be encoded and comes back exactly; there is no
    unknown token. A text with too few different pairs gives fewer ids than asked for.

    Args:
        texts: the documents to learn from.
        vocab_size: ids to stop at.
        special_tokens: more of them, such as `chat.SPECIAL_TOKENS`; they take ids 3, 4, ...

    Raises:
        ValueError: vocab_size has no room for the special tokens and the bytes, or a special token
            is there twice.
    """
    special = [PAD, EOS, BOS, *special_tokens]
    if len(set(special)) < len(special) or "" in special:
        raise ValueError(f"special tokens must be different and not empty: {special}")
    smallest = SMALLEST_VOCABULARY + len(special_tokens)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}; a byte-level BPE needs at least {smallest}: "
            f"{len(special)} special tokens and 256 bytes"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def cached_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    corpus_sha256: str,
    folder: Path,
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """`train_bpe`, or what it gave the last time for this corpus, size and special tokens.

    Args:
        texts: the documents; not touched if the result is there.
        vocab_size: ids to stop at.
        corpus_sha256: identifies the texts.
        folder: where results are kept. One that cannot be read is made again, with a warning.
        special_tokens: as for `train_bpe`.
    """
    mark = ""
    if special_tokens:
        mark = "-" + hashlib.sha256("\0".join(special_tokens).encode()).hexdigest()[:8]
    file = folder / f"bpe-{corpus_sha256[:16]}-{vocab_size}{mark}.json"
    if file.exists():
        try:
            return Tokenizer.load(file)
        except ValueError as error:
            warnings.warn(f"training the tokenizer again: {error}", stacklevel=2)
    tokenizer = train_bpe(texts, vocab_size, special_tokens)
    tokenizer.save_file(file)
    return tokenizer


def _of_definition(definition: str, ids: Mapping[str, int]) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(definition), ids=ids)


def _ids_of_settings(file: Path, backend: tokenizers.Tokenizer) -> dict[str, int]:
    """Ids by role of the special tokens that a `tokenizer_config.json` names, if there is one."""
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        named = {role: settings.get(f"{role}_token") for role in _KNOWN_NAMES}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: not a tokenizer's settings: {error}") from None
    ids = {}
    for role, token in named.items():
        if isinstance(token, dict):  # with flags beside its text
            token = token.get("content")
        if token is None:
            continue
        found = backend.token_to_id(token) if isinstance(token, str) else None
        if found is None:
            raise ValueError(f"{file}: {role}_token is {token!r}, which is not in the vocabulary")
        ids[role] = found
    return ids


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    decoder = json.loads(backend.to_str())["decoder"] or {}
    return any(part["type"] == "ByteLevel" for part in decoder.get("decoders", [decoder]))


def _byte_characters() -> dict[str, int]:
    """The printable character by which byte-level vocabularies write each byte (GPT-2).

    Printable Latin-1 stands for itself; the other 68 bytes take U+0100 and up, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


def _byte_level(token: str) -> bytes:
    if not _BYTE_OF.keys() >= set(token):  # as the library decodes it: such a token is plain text
        return token.encode()
    return bytes(_BYTE_OF[character] for character in token)


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("\u2581", " ").encode()
