import dataclasses
import json
import re
import shutil

import pytest

from tests.report import fake
from tests.report.fake import BASE, change, write_run
from zaya_jax.errors import UserError
from zaya_jax.report import arms, cli, compare, content, run, study
from zaya_jax.report.content import Badge, Table, Text
from zaya_jax.sweep import record
from zaya_jax.train import workdir

pytestmark = pytest.mark.usefixtures("undrawn")


def section(page, title):
    (found,) = [s for s in page.without_gaps() if s.title == title]
    return found


def tables(page, title):
    return [part for part in section(page, title).parts if isinstance(part, Table)]


@pytest.fixture
def page(arms_folder):
    return cli.of([arms_folder])


def test_the_page_says_which_arm_wins_and_how_sure_that_is(page):
    lines = [part.text for part in page.opening if isinstance(part, Text)]
    assert lines[0] == "Does the router's form decide how soon loads are even?"
    assert re.match(
        r"mlp_eda has the best held-out bits per byte: 2\.0\d+ ± 0\.\d+ \(3 seeds", lines[1]
    )
    assert "It is better than linear (by 0.0" in lines[1]


def test_claims_have_verdicts_with_what_they_rest_on(page):
    (claims,) = tables(page, "Claims")
    verdicts = [row[1] for row in claims.rows]
    assert verdicts == [
        Badge("agrees", "good"), Badge("disagrees", "bad"), Badge("not settled", "open")
    ]  # fmt: skip
    assert claims.rows[0][0] == "mlp_eda has less held-out bits per byte than linear"
    assert re.fullmatch(r"0\.0\d+ ± 0\.0\d+ bits less, 3 seeds", claims.rows[0][2])
    assert claims.rows[0][3] == "report, figure 4"
    assert page.results["claims"][0]["verdict"] == "agrees"
    assert page.results["claims"][0]["gain"]["n"] == 3


def test_a_count_of_steps_that_was_never_reached_is_told_and_counts_with_the_last_step(page):
    (table,) = tables(page, "The arms")
    linear, mlp, _ = table.rows
    assert linear[0] == "linear" and linear[1] == 3 and linear[3] == "never, > 400"
    assert re.fullmatch(r"1\d\d ± \d+", mlp[3])
    found = page.results["arms"]["linear"]["steps_to_balance"]
    assert found["not reached"] == [0, 1, 2] and found["mean"] == 400


def test_differences_to_the_first_arm_are_told_with_their_sign(page):
    (table,) = tables(page, "Differences to the first arm")
    name, bits, steps = table.rows[0]
    assert name == "mlp"
    assert bits.tone == steps.tone == "good"
    assert bits.word.startswith("-0.04") and steps.word.startswith("< -2")


def test_costs_warn_where_the_arms_are_not_matched(page):
    parts = section(page, "Costs").parts
    assert parts[0].rows[0][0] == "linear"
    warned = [part.text for part in parts if isinstance(part, Text)]
    assert warned[0].startswith("Arms are not matched in parameters: linear has")


def titles(page):
    found = section(page, "Load of every expert over time")
    assert found.folded
    return [part.title for part in found.parts]


def test_each_of_a_few_arms_shows_its_experts_over_time_and_of_many_the_best(page, tmp_path):
    loads = [title for title in titles(page) if "Load" in title]
    assert loads == [f"{a}, seed 0: Load of each expert over time" for a in fake.ARMS]
    for number in range(6):
        fields = {"balance.rate": 0.1 * (1 + number), "train.steps": 40}
        write_run(tmp_path / str(number), change(BASE, fields), loss=2.0 - 0.1 * (number == 3))
    many = titles(compare.of_runs(sorted(tmp_path.iterdir())))
    assert many and all(title.startswith("rate=0.4, seed 0: ") for title in many)


def test_what_came_to_nothing_is_told_with_its_reason(page):
    (table,) = tables(page, "Trials that came to nothing")
    assert [row[1:] for row in table.rows] == [
        ("broken", "failed", "seed 1: exit code 2"),
        ("slow", "pruned", "fell behind"),
        ("odd", "invalid", "no such model"),
    ]


def test_the_exact_commands_are_there(page):
    words = "\n".join(part.text for part in section(page, "Commands").parts)
    assert "python launch.py sweep --config=experiments/fake.py" in words
    assert "launch.py train --config=experiments/fake.py --config.model.router.kind=linear" in words


def test_any_runs_are_grouped_by_config_and_named_by_what_differs(tmp_path):
    for rate in (0.1, 0.01):
        for seed in (0, 1):
            changed = {"balance.rate": rate, "train.seed": seed, "name": f"r{rate}s{seed}"}
            write_run(tmp_path / f"{rate}-{seed}", change(BASE, changed))
    folders = sorted(tmp_path.iterdir())
    found, odd = arms.group([run.read(folder) for folder in folders])
    assert [(arm.name, sorted(arm.runs)) for arm in found] == [
        ("rate=0.01", [0, 1]), ("rate=0.1", [0, 1])
    ]  # fmt: skip
    assert not odd and found[0].fields == {"balance.rate": 0.01}
    page = compare.of_runs(folders)
    words = content.as_lines(page)
    assert "rate=0.1" in words
    assert "--workdir=0.01-1" in section(page, "Commands").parts[0].text


def test_arms_whose_short_names_are_the_same_have_long_ones(tmp_path):
    for rate in (0.00123456, 0.00123461, 0.1):
        write_run(tmp_path / str(rate), change(BASE, {"balance.rate": rate}))
    page = compare.of_runs(sorted(tmp_path.iterdir()))
    assert list(page.results["arms"]) == ["rate=0.00123456", "rate=0.00123461", "rate=0.1"]


def test_the_same_run_twice_counts_once(run_folder):
    found, odd = arms.group([run.read(run_folder)] * 2)
    assert len(found) == 1 and len(found[0].runs) == 1
    assert "has the config and the seed of" in odd[0]


def test_runs_that_differ_in_more_than_their_fields_are_warned_of(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), change(BASE, {"train.seed": seed}))
    starts = json.loads((tmp_path / "1" / workdir.ENVIRONMENT).read_text())
    starts[-1] |= {"commit": "feed", "processor": "another"}
    workdir.write_json(tmp_path / "1" / workdir.ENVIRONMENT, starts)
    workdir.write_json(tmp_path / "1" / workdir.DATA, {"rows_sha256": "other"})
    told = " ".join(compare.of_runs([tmp_path / "0", tmp_path / "1"]).results["warnings"])
    for what in ("commits", "hardware", "data"):
        assert what in told


def test_a_sweep_ran_where_its_runs_did_not_where_its_pages_were_written(arms_folder, tmp_path):
    folder = shutil.copytree(arms_folder, tmp_path / "sweep")
    starts = json.loads((folder / workdir.ENVIRONMENT).read_text())
    again = starts[0] | {"commit": "later", "processor": "another"}
    workdir.write_json(folder / workdir.ENVIRONMENT, [*starts, again])
    file = record.folder_of(folder, 1, 2) / workdir.ENVIRONMENT
    own = json.loads(file.read_text())
    workdir.write_json(file, [own[0] | {"commit": "feed-dirty"}])
    (table,) = tables(cli.of([folder]), "Ran on")
    rows = dict(table.rows)
    assert rows["commit"] == "0123456789abcdef (8 runs); feed-dirty (1 run)"
    assert rows["processor"] == "an imagined processor" and rows["versions.jax"] == "0.10.2"


@pytest.mark.parametrize("said, threads", [("", 1), (" --threads=3", 3), (" --threads 3", 3)])
def test_a_sweep_cost_the_threads_that_its_runs_had(arms_folder, tmp_path, said, threads):
    folder = shutil.copytree(arms_folder, tmp_path / "sweep")
    (start,) = json.loads((folder / workdir.ENVIRONMENT).read_text())
    start["command"] += said
    workdir.write_json(folder / workdir.ENVIRONMENT, [start])
    (table,) = tables(cli.of([folder]), "Time taken")
    assert dict(table.rows)["core-seconds, at most"] == 9 * 20.0 * threads  # not the 2 cores there


def test_a_run_under_way_does_not_count_beside_finished_ones(tmp_path):
    for seed in (0, 1):
        until = 100 if seed else None
        write_run(tmp_path / str(seed), change(BASE, {"train.seed": seed}), until=until)
    page = compare.of_runs([tmp_path / "0", tmp_path / "1"])
    (table,) = tables(page, "The arms")
    assert table.rows[0][1] == 1 and "one seed" in table.rows[0][2]
    assert any("seed 1, is not counted: 100 of 400" in w for w in page.results["warnings"])


def test_where_no_run_is_finished_all_count_up_to_a_common_step(tmp_path):
    for seed, until in ((0, 120), (1, 200)):
        write_run(tmp_path / str(seed), change(BASE, {"train.seed": seed}), until=until)
    page = compare.of_runs([tmp_path / "0", tmp_path / "1"])
    assert any("at step 120" in w for w in page.results["warnings"])
    values = page.results["arms"]["fake"]["bits_per_byte"]["values"]
    records = run.read(tmp_path / "1").evaluations
    assert values["1"] == next(r["heldout_bits_per_byte"] for r in records if r["step"] == 120)


@pytest.mark.parametrize("state", ["running", "waiting", "failed"])
def test_an_arm_that_is_not_done_has_the_seeds_that_are(arms_folder, tmp_path, state):
    found = study.read(arms_folder)
    trials = [dataclasses.replace(t, state=state, value=None) for t in found.trials[:1]]
    folder = tmp_path / "sweep"
    write_run(record.folder_of(folder, 0, 0), BASE)
    for name in (record.SWEEP, workdir.ENVIRONMENT):
        (folder / name).write_bytes((arms_folder / name).read_bytes())
    record.write_trials(folder, trials)
    page = cli.of([folder])
    assert tables(page, "The arms")[0].rows[0][1] == 1
    under_way = any("0 of 1 trials are done" in w for w in page.results["warnings"])
    assert under_way == (state != "failed")


def test_a_sweep_among_several_directories_is_refused(arms_folder, run_folder):
    with pytest.raises(UserError, match="a sweep has a page of its own"):
        cli.of([run_folder, arms_folder])


def test_names_are_as_short_as_they_can_be():
    paths = ["model.router.kind", "balance.kind", "balance.kp"]
    assert arms.short_names(paths) == {
        "model.router.kind": "router.kind", "balance.kind": "balance.kind", "balance.kp": "kp"
    }  # fmt: skip


def test_means_are_told_to_two_digits_of_their_interval():
    from zaya_jax.sweep.statistics import Interval

    assert content.mean_and_half(Interval(2.00617, 0.1, 0.00883, 3)) == "2.0062 ± 0.0088"
    assert content.mean_and_half(Interval(-123.4, 9, 22.7, 3), signed=True) == "-123 ± 23"
    assert content.mean_and_half(Interval(12345.6, 9, float("inf"), 1)) == "12,346"
    assert content.mean_and_half(Interval(400.0, 0, 0.0, 3)) == "400 ± 0"
