"""Bodies of requests: what may be asked, typed, so that the server's OpenAPI says it too.

Fields that the OpenAI API has and that change nothing here (who the user is, where it is billed)
are taken and ignored. Those that would change an answer and that the server does not have are
refused by `refuse`, unless they say what is done anyway. What is unknown is refused, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from zaya_jax.answers import Kind
from zaya_jax.infer.rsa import PRESETS
from zaya_jax.serve.errors import ApiError, unsupported

MOST_CHOICES = 128
LARGEST = 2**31 - 1
"""Numbers of tokens and the like: what an int32 holds."""
MOST_ROLLOUTS, MOST_CANDIDATES, MOST_ROUNDS = 1024, 64, 64
"""Of a stage of Markovian RSA, in a prompt of it, and stages; the server's own limits bind too."""
_TEXT = {"type": "string"}
_PARTS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": _TEXT},
        "required": ["type", "text"],
    },
}
_CONTENT = {"anyOf": [_TEXT, _PARTS]}
_CALL = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": _TEXT, "arguments": _TEXT},
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
}
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, _PARTS, {"type": "null"}]},
        "reasoning_content": {"anyOf": [_TEXT, {"type": "null"}]},
        "tool_calls": {"anyOf": [{"type": "array", "items": _CALL}, {"type": "null"}]},
        "tool_call_id": _TEXT,
    },
    "required": ["role"],
}
PROMPT = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT},
        {"type": "array", "items": {"type": "integer", "minimum": 0}},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        },
    ]
}
Messages = Annotated[
    list[dict[str, Any]],
    Field(min_length=1),
    WithJsonSchema({"type": "array", "items": MESSAGE, "minItems": 1}),
]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Many = Annotated[list[Stop], Field(max_length=16)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Schema = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """include_usage: whether a last chunk tells the tokens."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Repetition(Strict):
    """When a completion counts as one that repeats itself; see `zaya_jax.infer.engine`."""

    longest: int = Field(128, ge=1, le=4096)
    rounds: int = Field(4, ge=2, le=LARGEST)
    least: int = Field(256, ge=1, le=LARGEST)
    certain: int = Field(0, ge=0, le=LARGEST)


class JsonSchema(Strict):
    """name, description: for the reader. strict: always so here."""

    name: str = "schema"
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Strict):
    """pattern: in the syntax of Rust's regex crate."""

    type: Literal["regex"]
    pattern: str


class GrammarFormat(Strict):
    """grammar: context-free, in Lark's syntax. It binds all that is written, reasoning too."""

    type: Literal["grammar"]
    grammar: str


Format = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat,
    Field(discriminator="type"),
]


class Sampled(Strict):
    """What both kinds of request have.

    model: as /v1/models calls it; the only one by default.
    temperature: 0 is greedy. top_k: -1 or 0 for all.
    seed: of the draws; a random one by default. The i-th choice gets the i-th seed after it.
    n: choices.
    stop: strings before which the text ends.
    repetition_guard: ends a completion that goes round in a circle.
    ignore_eos: goes on behind an end-of-sequence.
    return_token_ids: whether to tell the ids of prompt and completion.
    """

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=LARGEST)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: Seed | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: Stop | Many | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = None
    repetition_guard: Repetition | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False
    # Refused unless neutral.
    logit_bias: dict[str, float] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    # Without effect.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None


class CompletionRequest(Sampled):
    """A text to continue.

    prompt: text or token ids, or a list of either.
    echo: whether the prompt comes back, with its log-probabilities if `logprobs` is given.
    logprobs: likeliest tokens to report beside each chosen one.
    max_tokens: 16 by default; 0 to score a prompt only.
    """

    prompt: Annotated[Any, WithJsonSchema(PROMPT)]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)
    best_of: int | None = None
    suffix: str | None = None


class Function(Strict):
    """parameters: a JSON schema of an object."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class Named(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: Named


class TemplateOptions(Strict):
    """enable_thinking: whether the model may think before it answers."""

    enable_thinking: bool | None = None


class Rsa(Strict):
    """Markovian RSA (docs/rsa.md): a preset, and what is to differ from it.

    trace: whether the answer has all rollouts.
    """

    preset: Annotated[str, Field(json_schema_extra={"enum": list(PRESETS)})] | None = None
    population: int | None = Field(None, ge=1, le=MOST_ROLLOUTS)
    candidates: int | None = Field(None, ge=1, le=MOST_CANDIDATES)
    rounds: int | None = Field(None, ge=0, le=MOST_ROUNDS)
    tail: int | None = Field(None, ge=1, le=LARGEST)
    budget: int | None = Field(None, ge=1, le=LARGEST)
    final_budget: int | None = Field(None, ge=1, le=LARGEST)
    hybrid: bool | None = None
    selection: Literal["none", "majority", "aggregate"] | None = None
    kind: Kind | None = None
    trace: bool = False


class ChatRequest(Sampled):
    """A conversation to answer.

    max_completion_tokens: of reasoning and answer together; what the context has room for by
      default. max_tokens: its old name.
    tools, tool_choice: functions that the model may call; with `required`, or one by name, it must,
      and the arguments keep to their schemas.
    logprobs, top_logprobs: of all that is written, reasoning too.
    reasoning_effort: `none` forbids thinking; everything else leaves it to the model.
    rsa: answers by Markovian RSA.
    """

    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    reasoning_effort: (
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    ) = None
    chat_template_kwargs: TemplateOptions | None = None
    rsa: Rsa | None = None
    # Refused unless neutral.
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    moderation: Any = None
    verbosity: str | None = None


_ABSENT: Mapping[str, str] = {
    "logit_bias": "is not supported; bind the text by response_format instead",
    "suffix": "is not supported: the model only continues texts",
    "audio": "is not supported: the model writes text",
    "prediction": "is not supported",
    "functions": "is the old name of tools, which are supported",
    "function_call": "is the old name of tool_choice, which is supported",
    "web_search_options": "is not supported",
    "moderation": "is not supported",
}


def refuse(body: CompletionRequest | ChatRequest) -> None:
    """Raises ApiError for what the OpenAI API has and this server does not."""
    for name, why in _ABSENT.items():
        if getattr(body, name, None):
            raise unsupported(name, why)
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(body, name):
            raise unsupported(name, "is not supported; see repetition_guard, temperature, min_p")
    best_of = getattr(body, "best_of", None)
    if best_of is not None and best_of != (body.n or 1):
        raise unsupported("best_of", "is not supported beyond n")
    if getattr(body, "modalities", None) not in (None, ["text"]):
        raise unsupported("modalities", 'expected ["text"]')
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: only with stream: true", param="stream_options")


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """What every refused request gets."""

    error: ErrorFields
