import ast
import textwrap

from zaya_jax.data import stdlib_docs
from zaya_jax.data.readers import Document, Rules
from zaya_jax.data.sources import survey


def documents(source, name="m.py"):
    return list(stdlib_docs.documents([Document(name, textwrap.dedent(source))]))


def test_a_module_by_hand():
    source = '''
        """What it is for."""
        import os
        "no docstring"
        class Heap(dict):
            """Keeps order.

            >>> Heap()
                Heap()
            """
            def bare(self):
                def inner():
                    "Within."
                return lambda: "no docstring"
            async def pop(self):
                """The least."""
        if os.name == "nt":
            pass
        else:
            try:
                def first(): "Of an else."
            except OSError:
                def second(): "Of a handler."
        def f(): return "no docstring"
    '''
    assert documents(source) == [
        Document(
            "m.py",
            "What it is for.\n\n\nHeap\n\nKeeps order.\n\n>>> Heap()\n    Heap()\n\n\n"
            "Heap.bare.inner\n\nWithin.\n\n\nHeap.pop\n\nThe least.\n\n\n"
            "first\n\nOf an else.\n\n\nsecond\n\nOf a handler.\n",
        )
    ]


def test_modules_without_prose_are_passed_over():
    assert not documents("x = 1\n# a comment\ndef f(): return x")
    assert not documents("def broken(:")
    assert not documents("topics = {'if': 'The if statement'}", "other.py")


def test_topics_are_documents():
    source = "topics = {'if': 'The \"if\" statement' '\\n', 'for': 'Loops'}"
    assert documents(source, "pydoc_data/topics.py") == [
        Document("pydoc_data/topics.py:if", 'The "if" statement\n'),
        Document("pydoc_data/topics.py:for", "Loops"),
    ]


def test_the_running_library_has_prose(monkeypatch):
    """Topics as `help()` knows them; of some modules, whose parsing takes a moment, docstrings."""
    import json.decoder
    from pathlib import Path
    from pydoc_data.topics import topics

    def some(paths):
        root = Path(json.__file__).parents[1]
        return [Document(path, (root / path).read_text(encoding="utf-8")) for path in paths]

    found = {
        document.name: document.text
        for document in stdlib_docs.documents(some(["pydoc_data/topics.py", "json/decoder.py"]))
    }
    docs = found.pop("json/decoder.py")
    assert found == {f"pydoc_data/topics.py:{topic}": text for topic, text in topics.items()}
    for thing in (json.decoder.JSONDecoder, json.decoder.JSONDecoder.raw_decode):
        assert f"\n\n\n{thing.__qualname__}\n\n{thing.__doc__.strip()[:40]}" in docs
    monkeypatch.setattr("zaya_jax.data.sources.read_stdlib", lambda intake: some(["json/tool.py"]))
    info = survey("stdlib-docs", Rules()).info
    assert info.documents == 1 and info.source.startswith("stdlib-docs (Python 3.")
    assert ast.get_docstring(ast.parse(some(["json/tool.py"])[0].text))
