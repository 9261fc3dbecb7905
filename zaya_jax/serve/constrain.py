"""From what a request demands of the text to one grammar for all that the model writes.

A model may think before it answers, so a demand on the answer alone becomes

    start: (<think> text </think>)? answer

with the think tags as tokens; if the prompt has opened the block, only its end is left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from zaya_jax.data.messages import THINK
from zaya_jax.infer.engine import Constraint
from zaya_jax.serve import schema
from zaya_jax.serve.errors import ApiError, unsupported
from zaya_jax.serve.form import CALL, Form
from zaya_jax.serve.tools import grammar_of_calls

ANY_TEXT = "/(?s:.*)/"
_SLASH = re.compile(r"\\.|/", re.DOTALL)
"""A slash, which would end a pattern in Lark, or what is escaped already."""
WHITE_SPACE = "\\n?[ ]{0,12}"
"""Between two parts of JSON."""


def bounded(json_schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose texts have little white space: models may write it without end."""
    return {"x-guidance": {"whitespace_pattern": WHITE_SPACE}, **json_schema}


def of_text(response_format: Any) -> Constraint | None:
    """For a text that is continued: it is all of it."""
    match response_format:
        case schema.JsonObjectFormat():
            return Constraint("json_schema", bounded({"type": "object"}))
        case schema.JsonSchemaFormat():
            return Constraint("json_schema", bounded(response_format.json_schema.schema_))
        case schema.RegexFormat():
            return Constraint("regex", response_format.pattern)
        case schema.GrammarFormat():
            return Constraint("lark", response_format.grammar)
    return None


def of_chat(
    body: schema.ChatRequest,
    tools: Sequence[dict[str, Any]],
    form: Form,
    *,
    opened: bool,
    enable_thinking: bool | None,
) -> Constraint | None:
    """For an answer in a conversation.

    Args:
      tools: that the model may call.
      opened: whether the prompt ends in a think block.
      enable_thinking: as the template was told.

    Raises:
      ApiError: a call is demanded, and there is nothing to call.
    """
    forced = body.tool_choice == "required" or isinstance(body.tool_choice, schema.NamedTool)
    if isinstance(body.response_format, schema.GrammarFormat):
        if forced:
            raise unsupported("response_format", "a grammar and a demanded tool call exclude each "
                              "other")  # fmt: skip
        return Constraint("lark", body.response_format.grammar)
    answer = None if forced else _answer(body.response_format)
    if answer is None and not forced:
        return None
    rules, bodies = [], []
    if answer is not None:
        rules.append(f"answer: {answer}")
        bodies.append("answer")
    if tools:
        begin, end = (form.id_of(tag) for tag in CALL)
        if begin is None or end is None:
            raise unsupported("tools", "the tokenizer has no tokens for tool calls")
        many = body.parallel_tool_calls is not False
        rules.append(grammar_of_calls(tools, (begin, end), many))
        bodies.append("calls")
    begin, end = (form.id_of(tag) for tag in THINK)
    thought = ""
    if end is not None and opened:
        thought = "reasoning "
        rules.append(f"reasoning: {ANY_TEXT} <[{end}]> /\\n*/")
    elif begin is not None and end is not None and enable_thinking is not False:
        thought = "(reasoning)? "
        rules.append(f"reasoning: <[{begin}]> {ANY_TEXT} <[{end}]> /\\n*/")
    elif begin is not None:  # the template has closed an empty block; two line ends follow it
        thought = "/(\\n\\n)?/ "
    rules.insert(0, f"start: {thought}({' | '.join(bodies)})")
    return Constraint("lark", "\n".join(rules))


def _answer(response_format: Any) -> str | None:
    """The right side of the rule for the answer."""
    match response_format:
        case schema.JsonObjectFormat():
            return f"%json {json.dumps(bounded({'type': 'object'}))}"
        case schema.JsonSchemaFormat():
            return f"%json {json.dumps(bounded(response_format.json_schema.schema_))}"
        case schema.RegexFormat():
            pattern = _SLASH.sub(
                lambda found: "\\/" if found[0] == "/" else found[0], response_format.pattern
            )
            if "\n" in pattern:
                raise ApiError(400, "response_format: write a line end as \\n", param="pattern")
            return f"/{pattern}/"
    return None
