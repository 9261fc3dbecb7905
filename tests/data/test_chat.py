import importlib.util
import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from zaya_jax.data import chat
from zaya_jax.data.chat import ChatTemplate
from zaya_jax.data.tokenizer import Tokenizer, train_bpe
from zaya_jax.errors import UserError

CHATML = ChatTemplate.find()
UNMARKED = ChatTemplate(
    CHATML.source.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
)

# Like many reasoning models' templates: thinking is shown in the last turn only, which has a block
# even where there is none. No {% generation %}.
FORGETFUL = ChatTemplate("""{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}
{%- set content = m.content.split('</think>')[-1].lstrip('\n') %}
{%- set thinking = m.reasoning_content or '' %}
{%- if '</think>' in m.content %}
{%- set thinking = m.content.split('</think>')[0].split('<think>')[-1] %}
{%- endif %}
{%- if loop.last %}{{- '<think>\n' + thinking.strip('\n') + '\n</think>\n\n' }}{%- endif %}
{{- content }}
{%- else %}{{- m.content | trim }}{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""")

# The user's turn ends with a word to the model, and the generation prompt opens the think block,
# which an answered turn need not have. No <|im_start|>.
FORCED = ChatTemplate("""{{- bos_token }}{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|user|>' + m.content + '<|model|>' }}
{%- elif m.role == 'assistant' %}
{%- if m.reasoning_content %}{{- '<think>\n' + m.reasoning_content + '</think>' }}{%- endif %}
{{- m.content + eos_token }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<think>\n' }}{%- endif %}""")


@pytest.fixture(scope="module")
def tokenizer(documents):
    texts = [document.text for document in documents]
    return train_bpe(texts, 360, (*chat.SPECIAL_TOKENS, "<|user|>", "<|model|>"))


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def learnt(example, tokenizer):
    return tokenizer.decode(example.ids[example.learn], keep_special=True)


def thoughts(example, tokenizer):
    return [(tokenizer.decode(example.ids[a:b]), turn) for a, b, turn in example.thinks]


def user(content="hi"):
    return {"role": "user", "content": content}


def model(content="yes", **fields):
    return {"role": "assistant", "content": content, **fields}


texts = st.text(st.sampled_from("ab 1\n\t<|>/é語😀.{}\"'\\"), max_size=12)
full_texts = texts.filter(str.strip)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["f", "think", "im_end"]),
            "arguments": st.dictionaries(
                st.sampled_from(["x", "think", "e"]), texts | st.integers() | st.lists(texts)
            ),
        }
    ).map(lambda function: {"type": "function", "function": function}),
    max_size=2,
)
inline = st.lists(texts, min_size=1, max_size=3).map(
    lambda parts: "".join(f"<think>{part}</think>a{part}" for part in parts)
)
assistants = st.one_of(
    st.builds(model, full_texts),
    st.builds(model, inline),
    st.builds(model, full_texts, reasoning_content=texts, tool_calls=calls),
)
turns = st.tuples(st.builds(user, texts), assistants).map(list)
conversations = st.lists(turns, min_size=1, max_size=3).map(lambda turns: sum(turns, []))
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {}}}}}]


# --- What is encoded, and what is learnt -----------------------------------------------------


def test_one_conversation_in_full(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        user("2+2?"),
        model("", reasoning_content="add\n", tool_calls=[
            {"function": {"name": "add", "arguments": '{"terms": [2, 2], "unit": "one"}'}}
        ]),
        {"role": "tool", "content": "4"},
        model("<think>done</think>4"),
        user("Thanks"),
        model("Welcome"),
    ]  # fmt: skip
    example = chat.encode(messages, tokenizer, CHATML)
    call = (
        "<zyphra_tool_call><function=add><parameter=terms>[2, 2]</parameter>"
        "<parameter=unit>one</parameter></function></zyphra_tool_call>"
    )
    said = [
        f"<think>\nadd\n</think>\n\n{call}<|im_end|>",
        "<think>done</think>4<|im_end|>",
        "Welcome<|im_end|>",
    ]
    start = "<|im_start|>assistant\n"
    assert tokenizer.decode(example.ids, keep_special=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        f"{start}{said[0]}\n<|im_start|>tool\n<zyphra_tool_response>4</zyphra_tool_response>"
        f"<|im_end|>\n{start}{said[1]}\n<|im_start|>user\nThanks<|im_end|>\n{start}{said[2]}\n"
    )
    assert learnt(example, tokenizer) == "".join(said)
    assert thoughts(example, tokenizer) == [("\nadd\n", 0), ("done", 1)]
    assert (example.turns, len(example)) == (3, example.ids.size)
    for name in chat.SPECIAL_TOKENS:
        written = tokenizer.decode(example.ids, keep_special=True).count(name)
        assert (example.ids == tokenizer.id_of(name)).sum() == written


@given(conversations, st.sampled_from([None, TOOLS]), st.sampled_from([None, True, False]))
def test_ids_and_mask_are_those_of_transformers(tokenizer, theirs, messages, tools, thinking):
    options = {} if thinking is None else {"enable_thinking": thinking}
    expected = theirs.apply_chat_template(
        messages,
        tools=tools,
        chat_template=CHATML.source,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **options,
    )
    example = chat.encode(messages, tokenizer, CHATML, tools, enable_thinking=thinking)
    assert example.ids.tolist() == expected["input_ids"]
    assert example.learn.astype(int).tolist() == expected["assistant_masks"]


@given(conversations, st.sampled_from([FORGETFUL, FORCED]))
def test_ids_of_foreign_templates_are_those_of_transformers(tokenizer, theirs, messages, template):
    expected = theirs.apply_chat_template(messages, chat_template=template.source)["input_ids"]
    assert chat.encode(messages, tokenizer, template).ids.tolist() == expected


@given(conversations, st.sampled_from([None, TOOLS]))
def test_a_template_that_marks_nothing_gets_the_same_mask(tokenizer, messages, tools):
    marked = chat.encode(messages, tokenizer, CHATML, tools)
    found = chat.encode(messages, tokenizer, UNMARKED, tools)
    assert marked.ids.tolist() == found.ids.tolist()
    assert marked.learn.tolist() == found.learn.tolist()
    assert marked.thinks == found.thinks and marked.turns == found.turns


def test_mask_where_earlier_turns_lose_their_thinking(tokenizer):
    messages = [user(), model("<think>a</think>b"), user(), model("c", thinking="d")]
    example = chat.encode(messages, tokenizer, FORGETFUL)
    assert learnt(example, tokenizer) == "b<|im_end|><think>\nd\n</think>\n\nc<|im_end|>"
    assert thoughts(example, tokenizer) == [("\nd\n", 1)]
    example = chat.encode([user(), model("c")], tokenizer, FORGETFUL)
    assert learnt(example, tokenizer) == "<think>\n\n</think>\n\nc<|im_end|>"


def test_mask_where_the_prompt_opens_the_think_block(tokenizer):
    messages = [user(), model("c", reasoning_content="d"), user(), model("e")]
    example = chat.encode(messages, tokenizer, FORCED)
    assert learnt(example, tokenizer) == "d</think>c<eos>e<eos>"
    assert thoughts(example, tokenizer) == [("\nd", 0)]
    assert example.ids[0] == tokenizer.bos_id


def test_mask_of_a_template_that_does_not_show_it(tokenizer):
    source = "{% for m in messages %}{{ m.content }}{% if not loop.last %};{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match=r"messages\[1\]: no header before it was found; put"):
        chat.encode([user(), model()], tokenizer, ChatTemplate(source))
    source = "{% for m in messages %}{{ m.content }}/{% endfor %}"
    with pytest.raises(ValueError, match=r"messages\[1\]: no end of it was found; put"):
        chat.encode([user(), model()], tokenizer, ChatTemplate(source))
    source = source.replace("{{", "{% if 0 %}{% generation %}x{% endgeneration %}{% endif %}{{")
    with pytest.raises(ValueError, match="no generation block for any assistant turn"):
        chat.encode([user(), model()], tokenizer, ChatTemplate(source))


PUBLISHED = {  # as trl ships them; what is learnt of the conversation below
    "cohere2": "<think>a</think>b{0}c{0}".format("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseekv3": "b<｜end▁of▁sentence｜>c<｜end▁of▁sentence｜>",
    "gemma": "<think>a</think>b<end_of_turn>c<end_of_turn>",
    "llama3": "<think>a</think>b<|eot_id|>c<|eot_id|>",
    "phi3": "<think>a</think>b<|end|>c<|end|>",
    "qwen2_5": "<think>a</think>b<|im_end|>c<|im_end|>",
    "qwen3": "b<|im_end|><think>\n\n</think>\n\nc<|im_end|>",
    "qwen3_5_think": "b<|im_end|>\n\n</think>\n\nc<|im_end|>",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(documents, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    trl = importlib.util.find_spec("trl")  # its files, not its imports
    if trl is None or trl.origin is None:
        pytest.skip("needs trl")
    folder = Path(trl.origin).parent / "chat_templates"
    plain, marked = (
        ChatTemplate.load(folder / f"{name}{kind}.jinja") for kind in ("", "_training")
    )
    names = re.findall(r"<\|\w+\|>|<(?:start|end)_of_turn>|<｜[^｜]+｜>", plain.source)
    names += ["<tool_call>", "</tool_call>"]
    names = dict.fromkeys([*names, *marked.controls, *plain.controls, *chat.THINK])
    form = train_bpe([documents[0].text], 400, list(names))
    form.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [user(), model("<think>a</think>b"), user("more"), model("c")]
    example = chat.encode(messages, form, plain)
    expected = theirs.apply_chat_template(messages, chat_template=plain.source)
    assert example.ids.tolist() == expected["input_ids"]
    assert learnt(example, form) == PUBLISHED[name]
    example = chat.encode(messages, form, marked)
    expected = theirs.apply_chat_template(
        messages,
        chat_template=marked.source,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert example.ids.tolist() == expected["input_ids"]
    assert example.learn.astype(int).tolist() == expected["assistant_masks"]
    if name.startswith("qwen"):  # the end of a turn of calls is the turn's, not the call's
        calls = [user(), model("", tool_calls=[{"function": {"name": "f", "arguments": {}}}])]
        calls += [{"role": "tool", "content": "4"}, model("c")]
        said = learnt(chat.encode(calls, form, plain), form)
        assert said.count("</tool_call><|im_end|>") == 1


def test_special_tokens_that_swallow_white_space(documents):
    form = train_bpe([documents[0].text], 340, chat.SPECIAL_TOKENS)
    form._backend.add_special_tokens([AddedToken("<|im_end|>", special=True, rstrip=True)])
    form = Tokenizer(form._backend)
    messages = [user(" a "), model("b")]
    example = chat.encode(messages, form, CHATML)
    form._backend.encode_special_tokens = False
    text = chat.render(messages, form, CHATML)
    assert example.ids.tolist() == form._backend.encode(text, add_special_tokens=False).ids
    assert (
        learnt(example, form)
        == "b<|im_end|>"
        == learnt(chat.encode(messages, form, UNMARKED), form)
    )


@given(conversations)
def test_a_prompt_is_what_stands_before_the_answer(tokenizer, messages):
    example = chat.encode(messages, tokenizer, CHATML)
    prompt = chat.prompt(messages[:-1], tokenizer, CHATML)
    assert example.ids[: len(prompt)].tolist() == prompt
    assert example.learn[len(prompt)] and not example.learn[len(prompt) - 1]


def test_without_thinking_the_empty_block_is_given(tokenizer):
    messages = [user(), model("c")]
    example = chat.encode(messages, tokenizer, CHATML, enable_thinking=False)
    prompt = chat.prompt(messages[:1], tokenizer, CHATML, enable_thinking=False)
    assert tokenizer.decode(prompt, keep_special=True).endswith("<think>\n\n</think>")
    assert example.ids[: len(prompt)].tolist() == prompt
    assert learnt(example, tokenizer) == "\n\nc<|im_end|>"
    thinking = [user(), model("c", reasoning_content="d")]
    assert thoughts(chat.encode(thinking, tokenizer, CHATML, enable_thinking=False), tokenizer) == [
        ("\nd\n", 0)
    ]


def test_three_names_of_thinking_and_text_parts(tokenizer):
    want = chat.render([user("ab"), model("c", reasoning_content="d")], tokenizer, CHATML)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for name in ("thinking", "reasoning"):
        assert chat.render([user(parts), model("c", **{name: "d"})], tokenizer, CHATML) == want
    assert chat.render([user()], tokenizer, CHATML, add_generation_prompt=True).endswith(
        "<|im_end|>\n<|im_start|>assistant\n"
    )


@given(conversations)
def test_a_sentencepiece_vocabulary(messages):
    """As Gemma's and ZAYA's: U+2581 for spaces, bytes as <0xNN>, line breaks as added tokens."""
    tokens = ["<eos>", "\u2581", "a", "b", "\u2581a", *(f"<0x{b:02X}>" for b in range(256))]
    backend = Backend(
        models.BPE({t: i for i, t in enumerate(tokens)}, [("\u2581", "a")], byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_tokens([AddedToken("\n", normalized=False), AddedToken("\n\n", normalized=False)])
    backend.add_special_tokens(["<eos>", *chat.SPECIAL_TOKENS])
    form = Tokenizer(backend)
    text = chat.render(messages, form, CHATML)
    example = chat.encode(messages, form, CHATML)
    backend.encode_special_tokens = False  # finds special tokens in text, as transformers does
    assert example.ids.tolist() == backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = True
    unmarked = chat.encode(messages, form, UNMARKED)
    assert unmarked.learn.tolist() == example.learn.tolist()


# --- Nobody forges control tokens ------------------------------------------------------------


pieces = st.lists(
    st.sampled_from([*chat.SPECIAL_TOKENS, "<|im_", "end|>", "<", "<think", ">", "<eos>", "a\n"]),
    max_size=8,
).map("".join)


def unmarked_thinks(tokenizer):
    """The same vocabulary, but think tags are ordinary added tokens, as in many checkpoints."""
    words = json.loads(tokenizer._backend.to_str())
    for token in words["added_tokens"]:
        token["special"] = "think" not in token["content"]
    return Tokenizer(type(tokenizer._backend).from_str(json.dumps(words)))


@given(pieces, pieces, pieces, pieces)
def test_text_with_control_tokens_stays_text(tokenizer, asked, named, argument, result):
    messages = [
        {"role": "system", "content": asked[::-1]},
        user([{"type": "text", "text": part} for part in (asked, named)]),
        model("b", tool_calls=[{"name": named, "arguments": {argument: [result], "x": asked}}]),
        {"role": "tool", "content": result},
        model("c"),
    ]
    tools = [{"function": {"name": named, "parameters": {"properties": {argument: result}}}}]
    plain = json.loads(json.dumps(messages).replace("<", "").replace("|", "").replace(">", ""))
    for form in (tokenizer, unmarked_thinks(tokenizer)):
        for template in (CHATML, UNMARKED):
            example = chat.encode(messages, form, template, tools)
            controls = [form.id_of(name) for name in chat.SPECIAL_TOKENS]
            found = [i for i in example.ids.tolist() if i in controls]
            expected = chat.encode(plain, form, template, [{"function": {"name": ""}}])
            assert found == [i for i in expected.ids.tolist() if i in controls]
            assert form.eos_id not in example.ids and not example.thinks
            text = chat.render(messages, form, template, tools)
            assert form.decode(example.ids, keep_special=True) == text


def test_names_of_fields_cannot_forge_either(tokenizer):
    with pytest.raises(ValueError, match=r"the field or type '<\|im_end\|>' holds the control"):
        chat.encode([user(), model(**{"<|im_end|>": 1})], tokenizer, CHATML)
    with pytest.raises(ValueError, match="the field or type '<think>' holds the control"):
        chat.encode([user(), model()], tokenizer, CHATML, [{"type": "<think>"}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content[:3] }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ 'x' if m.content.startswith('y') else m.content }}{% endfor %}",
    ],
)
def test_a_template_that_looks_into_texts_is_refused(tokenizer, source):
    with pytest.raises(ValueError, match="looks into the texts of messages"):
        chat.encode([user("yesterday"), model("years")], tokenizer, ChatTemplate(source))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.json }}",
        "{% include 'x' %}",
        "{{ range(10 ** 9) | list }}",
        "{{ raise_exception('no tools here') }}",
    ],
)
def test_templates_of_strangers_stay_in_their_sandbox(tokenizer, attack):
    with pytest.raises(ValueError, match="evil.jinja fails"):
        chat.encode([user(), model()], tokenizer, ChatTemplate(attack, "evil.jinja"))


# --- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("hi", "messages is 'hi'; it must be a list"),
        ([], r"messages is \[\]"),
        ([user(), "x"], r"messages\[1\] is 'x'; it must be an object"),
        ([{"content": "x"}], r"messages\[0\].role is None; there are: system, user, assistant"),
        ([{"role": "asistant", "content": "x"}], r"\[0\].role is 'asistant'; did you mean assi"),
        ([user(), model(), user(None)], r"messages\[2\].content is None; it must be text"),
        ([user([{"type": "image_url"}])], r"messages\[0\].content\[0\] is .*parts of type 'text'"),
        ([user()], "no assistant turn"),
        ([user(), model("")], r"messages\[1\] is an empty assistant turn"),
        ([user(), model(" \n")], r"messages\[1\] is an empty assistant turn"),
        ([user(), model("<think>a</think>\n")], "empty assistant turn"),
        ([user(), model("", reasoning_content="a")], "empty assistant turn"),
        ([user(), model("<think>a")], r"messages\[1\].content: unbalanced <think>: the one at cha"),
        ([user(), model("a</think>b")], "the </think> at character 1 closes nothing"),
        ([user(), model("<think><think>a</think>b")], "the <think> at character 7 opens a block"),
        ([user(), model("b", reasoning_content="</think>")], "reasoning_content holds </think>"),
        ([user(), model("<think>a</think>b", thinking="c")], "thinks both in thinking and between"),
        ([user(), model(thinking=["c"])], r"messages\[1\].thinking is \['c'\]"),
        ([user(), model(tool_calls="f")], r"messages\[1\].tool_calls is 'f'; it must be a list"),
        ([user(), model(tool_calls=[{}])], r"messages\[1\].tool_calls\[0\] is {}; it must be"),
        ([user(), model(tool_calls=[{"name": "f", "arguments": "{"}])], "arguments are not JSON"),
        ([user(), model(tool_calls=[{"name": "f", "arguments": [1]}])], r"arguments are \[1\]"),
        ([user("\ud83d"), model()], r"messages\[0\].content is no Unicode text"),
        ([user(), model(extra={1, 2})], r"messages\[1\].extra is .*what JSON can hold"),
    ],
)
def test_malformed_messages_are_named(tokenizer, messages, told):
    with pytest.raises(ValueError, match=told):
        chat.encode(messages, tokenizer, CHATML)


def test_data_that_is_nested_too_deep(tokenizer):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        chat.encode([user(), model(extra=deep)], tokenizer, CHATML)


@pytest.mark.parametrize("tools", ["f", ["f"]])
def test_malformed_tools_are_named(tokenizer, tools):
    with pytest.raises(ValueError, match="tools(.0.)? is 'f'; it must be"):
        chat.encode([user(), model()], tokenizer, CHATML, tools)


def test_a_tokenizer_without_the_special_tokens_is_told_all_of_them(documents):
    plain = train_bpe(["a b"], 300, ["<|im_end|>"])
    with pytest.raises(UserError) as error:
        chat.check_tokenizer(plain, CHATML)
    for name in chat.SPECIAL_TOKENS:
        assert (name in str(error.value)) == (name != "<|im_end|>")
    with pytest.raises(UserError, match="lacks special tokens"):
        chat.encode([user(), model()], plain, CHATML)
    simple = ChatTemplate("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    chat.check_tokenizer(plain, simple)
    with pytest.raises(UserError, match="<think>, </think>"):
        chat.encode([user(), model("<think>a</think>b")], plain, simple)


# --- Others ----------------------------------------------------------------------------------


def test_a_template_goes_to_worker_processes(tokenizer):
    messages = [user(), model()]
    copy = pickle.loads(pickle.dumps((tokenizer, CHATML)))
    ids = chat.encode(messages, *copy).ids
    assert ids.tolist() == chat.encode(messages, tokenizer, CHATML).ids.tolist()


def test_special_tokens_that_are_not_marked_as_such(tokenizer):
    """Checkpoints often add think tags as ordinary tokens; they are control tokens all the same."""
    form = unmarked_thinks(tokenizer)
    assert "<think>" not in form.special_ids
    messages = [user("<think>"), model("<think>a</think>b")]
    example = chat.encode(messages, form, CHATML)
    assert thoughts(example, form) == [("a", 0)]
    assert (example.ids == form.id_of("<think>")).sum() == 1
    assert AddedToken("<think>").content in form.decode(example.ids, keep_special=True)
