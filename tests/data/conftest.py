"""A small corpus with everything that is hard about text: indents, code, other scripts."""

import pytest

from zaya_jax.data.readers import Document
from zaya_jax.data.tokenizer import Tokenizer, train_bpe


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return [
        Document(
            f"module_{i:02}.py",
            f"def f{i}(x):\n    # наука и语言 {i}\n    return x + {i} * {i * i}\n\n\n"
            * (1 + i % 5),
        )
        for i in range(60)
    ]


@pytest.fixture(scope="session")
def tokenizer(documents) -> Tokenizer:
    return train_bpe([document.text for document in documents], 320)


@pytest.fixture
def folder(tmp_path, documents):
    """The corpus as a folder of files."""
    root = tmp_path / "corpus"
    root.mkdir()
    for document in documents:
        (root / document.name).write_text(document.text, encoding="utf-8")
    return root
