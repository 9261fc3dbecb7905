import dataclasses

import pytest

from tests.report import fake
from tests.report.test_compare import section, tables
from zaya_jax.report import cli, search, study
from zaya_jax.report.content import Code, Figure, Text
from zaya_jax.report.spaces import Axis
from zaya_jax.sweep import record


@pytest.fixture(scope="module")
def page(search_folder):
    return cli.of([search_folder])


def opening(page):
    return [part.text for part in page.opening if isinstance(part, Text)]


def with_trials(source, folder, change, **settings):
    """The sweep in `source` with other trials and settings, and no runs."""
    found = study.read(source)
    folder.mkdir()
    record.write_trials(folder, [change(trial) for trial in found.trials])
    fake.workdir.write_json(folder / record.SWEEP, found.settings | settings)
    return folder


def test_the_page_says_what_to_use_and_how_sure_that_is(page, search_folder):
    best = search.ranked(study.read(search_folder))[0]
    use, base, mattered, beware = opening(page)[1:5]
    assert use.startswith(f"Use kp = {best.fields['balance.kp']}, ki = ")
    assert f"(trial {best.number}): held-out bits per byte " in use and "over 3 seeds" in use
    assert "ahead of the runner-up" in use
    assert "none of the trials" in base
    assert "What matters most is kp (" in mattered
    assert "looks better than it is" in beware


def test_the_best_trials_are_in_a_table_with_their_command(page, search_folder):
    (table,) = tables(page, "The best trials")
    assert table.head[:5] == ["rank", "trial", "kp", "ki", "kind"]
    best = search.ranked(study.read(search_folder))[0]
    assert table.rows[0][:2] == [1, str(best.number)]
    assert table.rows[1][6].startswith("+0.0")
    (command,) = [p for p in section(page, "The best trials").parts if isinstance(p, Code)]
    assert f"--config.balance.kp={best.fields['balance.kp']}" in command.text


def test_the_field_that_decides_is_found_the_most_important(page):
    first, *_ = page.results["fields"]
    assert first["path"] == "balance.kp" and first["share"] > 0.5
    kind = next(f for f in page.results["fields"] if f["path"] == "model.router.kind")
    assert kind["correlation"] is None


def test_every_trial_can_be_told_in_the_plots(page, search_folder):
    figures = {
        part.title: part.svg
        for s in page.without_gaps()
        for part in s.parts
        if isinstance(part, Figure)
    }
    for title in ("Parallel coordinates", "balance.kp", "balance.ki", "model.router.kind"):
        for number in range(12):
            assert f"<title>trial {number}: " in figures[title], (title, number)
    assert "kp (log)" in figures["Parallel coordinates"]
    assert "no value" in figures["History"]
    assert "best (trial" in figures["Load entropy"]
    heat = [title for title in figures if "Load of each expert over time" in title]
    assert [title.split(" (")[0] for title in heat] == ["best", "worst"]


def test_a_clear_winner_is_told_from_noise(search_folder, tmp_path, undrawn):
    def change(trial):
        value = 1.0 + 0.1 * trial.number
        values = {seed: value + 0.001 * int(seed) for seed in "012"}
        done = trial.state == "complete"
        return dataclasses.replace(trial, values=values, value=value + 0.001) if done else trial

    folder = with_trials(search_folder, tmp_path / "clear", change)
    assert "more than the seeds differ." in opening(cli.of([folder]))[1]


def test_the_gain_over_the_base_is_told_where_it_is_a_trial(search_folder, tmp_path, undrawn):
    base = {"balance.kp": 0.0, "balance.ki": 0.005, "model.router.kind": "mlp_eda"}

    def change(trial):
        return dataclasses.replace(trial, fields=base) if trial.number == 5 else trial

    folder = with_trials(search_folder, tmp_path / "base", change)
    assert "Over the base's own fields (trial 5) the gain is 0." in " ".join(
        opening(cli.of([folder]))
    )


@pytest.mark.parametrize(
    "state, said",
    [
        ("failed", "failed: it broke"),
        ("pruned", "were given up: it broke"),
        ("complete", "never came to the objective: it broke"),
        ("running", "are not done yet: it broke"),
    ],
)
def test_what_became_of_the_base_is_told(search_folder, tmp_path, undrawn, state, said):
    base = {"balance.kp": 0.0, "balance.ki": 0.005, "model.router.kind": "mlp_eda"}

    def change(trial):
        if trial.number:
            return trial
        return dataclasses.replace(
            trial, fields=base, state=state, value=None, values={}, reason="it broke"
        )

    told = opening(cli.of([with_trials(search_folder, tmp_path / "base", change)]))
    line = f"The base's own fields (trial 0) {said}, so the gain over them is not known."
    assert line in told


def test_more_may_be_better_and_one_seed_is_called_one(search_folder, tmp_path, undrawn):
    def change(trial):
        values = dict(list(trial.values.items())[:1])
        return dataclasses.replace(trial, values=values, value=next(iter(values.values()), None))

    folder = with_trials(
        search_folder, tmp_path / "one", change, objective="final_load_entropy", seeds=[0]
    )
    points = search.ranked(study.read(folder))
    assert points[0].value == max(p.value for p in points)
    use, _, mattered, *_ = opening(cli.of([folder]))[1:]
    assert mattered.startswith("What seems to matter most is ") and "may be noise" in mattered
    assert "more is better" in use and "one seed" in use and "nobody knows" in use


def test_a_best_value_at_the_edge_of_what_was_searched_is_warned_of(
    search_folder, tmp_path, undrawn
):
    def change(trial):
        if trial.state != "complete":
            return trial
        fields = trial.fields | ({"balance.kp": 0.99} if trial.number == 0 else {})
        return dataclasses.replace(
            trial, fields=fields, value=trial.value - (trial.number == 0), values={}
        )

    folder = with_trials(search_folder, tmp_path / "edge", change)
    told = " ".join(opening(cli.of([folder])))
    assert "Of the best trial, balance.kp = 0.99 lies at the upper end of what was searched" in told


def test_fields_with_a_single_value_are_no_axes(search_folder, tmp_path, undrawn):
    found = study.read(search_folder)
    space = found.settings["space"]
    space = space | {"balance": space["balance"] | {"kind": ["pid"]}}

    def change(trial):
        return dataclasses.replace(trial, fields=trial.fields | {"balance.kind": "pid"})

    folder = with_trials(search_folder, tmp_path / "fixed", change, space=space)
    again = study.read(folder)
    assert "balance.kind" not in search.axes_of(again, search.ranked(again))
    (table,) = tables(cli.of([folder]), "What was searched")
    assert ("balance.kind", "pid", "pid") in table.rows


def test_a_sweep_without_a_value_has_a_page(search_folder, tmp_path, undrawn):
    def change(trial):
        return dataclasses.replace(trial, state="running", value=None, values={})

    page = cli.of([with_trials(search_folder, tmp_path / "none", change)])
    assert "No trial has a value yet." in opening(page)
    assert any("0 of 13 trials are done" in line for line in opening(page))


def test_trials_of_which_more_is_to_come_did_not_come_to_nothing(search_folder, tmp_path, undrawn):
    states = {0: "waiting", 1: "running", 2: "pruned", 3: "invalid", 4: "complete"}

    def change(trial):
        if trial.number not in states:
            return trial
        return dataclasses.replace(trial, state=states[trial.number], value=None, values={})

    page = cli.of([with_trials(search_folder, tmp_path / "open", change)])
    (table,) = tables(page, "Trials that came to nothing")
    assert [(row[0], row[2]) for row in table.rows] == [
        ("trial 2", "pruned"),
        ("trial 3", "invalid"),
        ("trial 4", "complete"),
        ("trial 12", "failed"),
    ]


def test_a_sweep_of_one_trial_has_a_page(search_folder, tmp_path, undrawn):
    def change(trial):
        return trial if trial.number == 3 else dataclasses.replace(trial, state="pruned")

    page = cli.of([with_trials(search_folder, tmp_path / "single", change)])
    assert opening(page)[1].startswith("Use kp = ")


def test_a_log_axis_is_even_in_ratios_and_has_round_ticks():
    axis = Axis("kp", None, 1e-3, 10.0, log=True)
    assert axis.place(0.1) == pytest.approx(0.5)
    assert axis.ticks()[1] == ["0.001", "0.01", "0.1", "1", "10"]
    narrow = Axis("kp", None, 0.2, 0.8, log=True)
    assert narrow.ticks()[1] == ["0.2", "0.4", "0.8"]


def test_a_categorical_axis_has_a_place_for_each_value():
    axis = Axis("kernels", ("()", "(2, 2)"))
    assert [axis.place([]), axis.place([2, 2])] == [0.25, 0.75]
    assert axis.ticks() == ([0.25, 0.75], ["()", "(2, 2)"])


def test_values_that_are_close_have_places_of_their_own(search_folder, tmp_path, undrawn):
    space = {"balance": {"kp": [0.00123456, 0.00123461]}}

    def change(trial):
        return dataclasses.replace(trial, fields={"balance.kp": space["balance"]["kp"][0]})

    folder = with_trials(search_folder, tmp_path / "close", change, space=space)
    found = study.read(folder)
    axis = search.axes_of(found, search.ranked(found))["balance.kp"]
    assert [axis.place(0.00123456), axis.place(0.00123461)] == [0.25, 0.75]
