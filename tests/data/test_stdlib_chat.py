import ast
import textwrap
from itertools import islice

from zaya_jax.data.readers import Document, Rules
from zaya_jax.data.sources import read
from zaya_jax.data.stdlib_chat import conversations


def chats(source):
    return list(conversations([Document("m.py", textwrap.dedent(source))]))


def test_a_function_by_hand():
    (chat,) = chats(
        """
        class Heap:
            @staticmethod
            def smallest(items, *rest, key=None):
                \'\'\'The least item.

                Of all.
                \'\'\'
                # Looks at all.
                for item in items:
                    if key(item) or helper.check(item):
                        raise ValueError(item)
                return item
        """
    )
    question, answer = chat.messages
    assert chat.name == "m.py:4"
    assert question["content"] == (
        "Write this Python method of the class `Heap`:\n\n"
        "def smallest(items, *rest, key=None)\n\nThe least item.\n\nOf all."
    )
    assert answer["content"] == (
        "<think>\nIt takes `items`, `key` and `*rest`, one with a default. It calls `key`, "
        "`helper.check` and `ValueError`. There is one loop and one branch. It raises "
        "`ValueError`. It returns `item`.\n</think>\n\n"
        "```python\n@staticmethod\ndef smallest(items, *rest, key=None):\n    # Looks at all.\n"
        "    for item in items:\n        if key(item) or helper.check(item):\n"
        "            raise ValueError(item)\n    return item\n```"
    )


def test_functions_that_teach_nothing_are_left_out():
    assert not chats(
        """
        def bare():
            return 1
        def stub():
            'Documented.'
        def short():
            'Documented.'
            return 1
        """
    )
    assert not list(conversations([Document("m.py", "def broken(:")]))


def test_answers_of_the_real_library_are_whole_functions():
    for chat in islice(read("stdlib-chat", Rules()), 300):
        thinking, code = chat.messages[1]["content"].split("</think>\n\n```python\n")
        (function,) = ast.parse(code.removesuffix("\n```")).body
        assert f"def {function.name}(" in chat.messages[0]["content"]
        assert thinking.startswith("<think>\nIt takes ")
