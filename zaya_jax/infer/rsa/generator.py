"""A policy that is a model: an engine behind the interface of `policy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from zaya_jax.data import chat
from zaya_jax.data.messages import THINK
from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError
from zaya_jax.infer import sampler
from zaya_jax.infer.engine import Engine, Event, Options, Request, Result
from zaya_jax.infer.request import encode
from zaya_jax.infer.rsa import prompts
from zaya_jax.infer.rsa.policy import Ask, Message, Sample
from zaya_jax.infer.rsa.settings import Settings
from zaya_jax.load import END_OF_TURN, TOKENIZER, Loaded


class Written(Protocol):
    """What any engine gives for a request."""

    @property
    def tokens(self) -> Sequence[int]: ...


class Chat:
    """Writes conversations as a model's token ids.

    With the control tokens of a chat template, by that template; a tokenizer without them belongs
    to a model that continues texts, and gets the texts of the messages.

    Attributes:
      template: None for a model that continues texts.
    """

    def __init__(self, loaded: Loaded, template: str | None = None):
        """Args:
          loaded: the model; it must have a tokenizer.
          template: a Jinja file; None for the tokenizer's own, or else ours.

        Raises:
          UserError: no tokenizer; a template that cannot be read; one that was named, and the
            tokenizer lacks its control tokens.
        """
        self._loaded, self._tokenizer = loaded, loaded.require_tokenizer()
        source = loaded.source
        folder = source.path / TOKENIZER if source.kind == "run" else source.path
        self.template: chat.ChatTemplate | None = chat.ChatTemplate.find(template, folder)
        try:
            chat.check_tokenizer(self._tokenizer, self.template)
        except UserError:
            if template is not None:
                raise
            self.template = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        return self._tokenizer

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        end = self._tokenizer.id_of(END_OF_TURN) if self.template is not None else None
        return self._tokenizer.eos_id if end is None else end

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids after which the model is to answer."""
        if self.template is None:
            return encode(self._loaded, "\n\n".join(message["content"] for message in messages))
        return chat.prompt(messages, self._tokenizer, self.template, lenient=True)

    def opens_thinking(self, ids: Sequence[int]) -> bool:
        """Whether a prompt ends within a think block: then the model writes no `<think>`."""
        opening, closing = (self._tokenizer.id_of(tag) for tag in THINK)
        last = next((i for i in reversed(ids) if i in (opening, closing)), None)
        return opening is not None and last == opening

    def decode(self, completion: Written) -> str:
        """What was written, think tags and all, without the token that ended it."""
        known = self._tokenizer.vocab_size
        kept = [i for i in completion.tokens if i not in self._loaded.stop_ids and i < known]
        return self._tokenizer.decode(kept, keep_special=True)


class LocalPolicy:
    """Answers asks with an engine of its own: rollouts of a stage run side by side, and the next
    one begins where one has ended.

    The shapes that are computed are always the same, so what comes of an ask depends on which
    others there are by rounding at most: a run that was interrupted goes on as if it had not been.

    Attributes:
      engine: nothing else uses it.
    """

    def __init__(self, loaded: Loaded, chat_form: Chat, *, batch: int, capacity: int):
        """Args:
          loaded: the model; layers in the form `unroll`.
          chat_form: writes the conversations.
          batch: rollouts that run together.
          capacity: tokens of the longest prompt and its rollout; see `capacity`. The pool has room
            for `batch` of them.

        Raises:
          UserError: as `Engine`.
        """
        self._chat = chat_form
        page = Options().page
        pages = 1 + batch * -(-capacity // page)
        options = Options(batch, row_sizes=(batch,), page=page, pages=pages, capacity=capacity)
        self.engine = Engine(loaded, options)

    def __call__(
        self,
        asks: Sequence[Ask],
        done: Callable[[int, Sample], None],
        progress: Callable[[int, str], None] | None = None,
    ) -> None:
        prompts = [self._chat.encode(ask.messages) for ask in asks]
        requests = [_request(ask, prompt) for ask, prompt in zip(asks, prompts, strict=True)]

        def tell(number: int, event: Event) -> None:
            if event.text and progress is not None:
                progress(number, event.text)
            if event.result is not None:
                done(number, self._sample(event.result, prompts[number]))

        self.engine.generate(requests, tell)

    def _sample(self, result: Result, prompt: Sequence[int]) -> Sample:
        if result.finish == "failed":
            raise UserError(f"a rollout failed: {result.error}")
        return Sample(
            text=self._chat.decode(result),
            tokens=len(result.tokens),
            prompt_tokens=result.prompt_tokens,
            finish=result.finish,
            thinking=self._chat.opens_thinking(prompt),
        )


def capacity(
    conversation: Sequence[Message],
    settings: Settings,
    chat_form: Chat,
    context: int,
    limit: str = "the model's context",
) -> int:
    """Tokens that a run needs room for: its longest prompt, and the longest rollout.

    Args:
      context: tokens that there is room for.
      limit: what it is called in messages.

    Raises:
      UserError: there is no room for them.
    """
    prompt = prompts.longest(conversation, settings, lambda m: len(chat_form.encode(m)))
    stages = range(settings.rounds + 1 + (settings.selection == "aggregate"))
    rollout = max(settings.budget_of(stage) for stage in stages)
    if prompt + rollout > context:
        raise UserError(
            f"prompts of up to {prompt} tokens and rollouts of up to {rollout} do not fit {limit} "
            f"of {context}: lower --candidates, --tail or the budgets"
        )
    return prompt + rollout


def _request(ask: Ask, ids: Sequence[int]) -> Request:
    given = ask.sampling
    sampling = sampler.Sampling(
        given.temperature, given.top_k, given.top_p, given.min_p, seed=ask.seed
    )
    return Request(ids, ask.max_tokens, sampling)
