import hashlib

import numpy as np

from zaya_jax.data.chat import SPECIAL_TOKENS
from zaya_jax.data.chat_template import ChatTemplate
from zaya_jax.data.encode import VERSION, Encoder
from zaya_jax.data.readers import Conversation, Document
from zaya_jax.data.records import to_bytes
from zaya_jax.data.tokenizer import train_bpe

CALL = {"function": {"name": "add", "arguments": {"a": 1, "b": "two"}}}
RECORDS = [
    Document("text", "naïve\n\tтекст <think>"),
    Conversation(
        "chat",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1? <|im_end|>"},
            {"role": "assistant", "content": "", "thinking": "Add.", "tool_calls": [CALL]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is 2."},
        ],
        [{"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}],
    ),
]


def test_ids_change_with_the_version_only():
    """If this fails on purpose: raise `encode.VERSION`, or caches give the old ids; then mend."""
    tokenizer = train_bpe([], 256 + 3 + len(SPECIAL_TOKENS), SPECIAL_TOKENS)  # bytes alone
    found, _, _ = Encoder(tokenizer, ChatTemplate.find())(RECORDS)
    data = b"".join(to_bytes(example, np.dtype("<u2")) for example in found)
    assert (VERSION, hashlib.sha256(data).hexdigest()[:16]) == (1, "b4b2b1312e5dc906")


def test_what_ids_depend_on_is_in_the_hash():
    tokenizer, other = (train_bpe([], 267, tokens) for tokens in (SPECIAL_TOKENS, ()))
    template = ChatTemplate.find()
    variants = [
        Encoder(tokenizer, template),
        Encoder(other, template),
        Encoder(tokenizer, ChatTemplate(template.source + "x")),
        Encoder(tokenizer, template, skip_bad=True),
    ]
    assert len({encoder.sha256 for encoder in variants}) == 4
    assert Encoder(tokenizer, template, where="elsewhere/").sha256 == variants[0].sha256
