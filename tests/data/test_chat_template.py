import json

import pytest

from zaya_jax.data.chat_template import ChatTemplate
from zaya_jax.errors import UserError

CHATML = ChatTemplate.find()


def test_a_named_template_comes_before_the_tokenizers_and_ours_is_last(tmp_path):
    assert ChatTemplate.find(None, tmp_path).source == CHATML.source
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"eos_token": "x"}')
    assert ChatTemplate.find(None, tmp_path).source == CHATML.source
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.find(None, tmp_path / "tokenizer.json").source == "d"
    (tmp_path / "chat_template.jinja").write_text("own")
    assert ChatTemplate.find(None, tmp_path).source == "own"
    (tmp_path / "mine.jinja").write_text("mine")
    assert ChatTemplate.find(tmp_path / "mine.jinja", tmp_path).source == "mine"


def test_templates_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jinja: cannot be read"):
        ChatTemplate.find(tmp_path / "nowhere.jinja")
    (tmp_path / "a.jinja").write_text("a\n{% if %}")
    with pytest.raises(UserError, match=r"a\.jinja, line 2: not a Jinja template"):
        ChatTemplate.find(tmp_path / "a.jinja")
    for text in ('{"chat_template": 3}', '{"chat_template": [{"name": "rag"}]}', "[", "[]"):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(UserError, match="its chat_template cannot be read"):
            ChatTemplate.find(None, tmp_path)
