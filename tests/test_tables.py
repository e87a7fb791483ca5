"""The paper's tables on the benchmark: what is asked, what is stored, and that it is not stale."""

import math
from collections import Counter

import pandas as pd
import pytest

import tfkit
from tfkit import metrics, paper, readings, tables
from tfkit.__main__ import main
from tfkit.evaluation import COLUMNS
from tfkit.menagerie import benchmark


def test_one_prompt_of_each_clip_gives_every_kind_of_change_its_share():
    chosen = tables.tasks(24, 4, prompts=1)
    assert [task.seed for task in chosen] == [task.seed for task in benchmark()]
    kinds = Counter(task.changes[0].kind for task in chosen)
    assert set(kinds) == {"species", "color", "coat", "ground"} and min(kinds.values()) >= 3
    whole = tables.tasks(24, 4)
    assert all(
        set(task.prompts) == set(other.prompts)
        for task, other in zip(whole, benchmark(), strict=True)
    )


@pytest.mark.parametrize("wrong", [{"clips": 25}, {"clips": 0}, {"prompts": 4}, {"frames": 1}])
def test_what_the_benchmark_has_not_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        tables.tasks(**wrong)


@pytest.fixture(scope="module")
def small():
    names = ("PnP, per frame", "PnP, joint attention", "PnP, fixed keyframes", "PnP, TokenFlow")
    some = {name: tables.CONTENDERS[name] for name in names}
    return tables.measure(2, frames=3, prompts=1, steps=3, contenders=some, progress=False)


def test_edits_and_reconstructions_are_measured(small):
    assert list(small.columns) == COLUMNS and not small.error.any()
    assert (small.measured_with != "").all()
    counts = small.groupby("method").metric.unique()
    assert set(counts["PnP, TokenFlow"]) == set(tables.MEASURED)
    assert set(counts["DDIM inversion"]) == {"psnr"}
    rebuilt = small[small.metric == "psnr"].groupby("method").value.mean()
    assert rebuilt["LDM reconstruction"] > rebuilt["DDIM inversion"]  # which has all its losses


def test_ours_stand_beside_the_papers(small):
    beside = paper.beside_the_paper(small)
    others = ["Text2Video-Zero", "Tune-A-Video", "FateZero", "Rerender"]
    own = ["joint attention", "fixed keyframes", "TokenFlow"]
    assert list(beside.index) == ["PnP, per frame", *others, *own]
    assert set(beside.loc[others].xs("tfkit", axis=1, level=1).to_numpy().flat) == {"–"}
    assert beside["warp error ×10³", "paper"].to_dict()["FateZero"] == "6.9"
    assert beside["over per frame", "tfkit"].iloc[0] == "1.00"
    assert beside["over per frame", "paper"].to_dict()["TokenFlow"] == "0.27"
    of = small[(small.method == "PnP, TokenFlow") & (small.metric == "warp_error")]
    expected = f"{1e3 * of.value.mean():.2f}"
    assert beside["warp error ×10³", "tfkit"]["TokenFlow"].startswith(expected)


def test_true_motion_bounds_what_fields_can_win():
    """On a clip, at its own size and at that of a token, as an edit by hand has it."""
    found = tables.along_true_motion(1, frames=4, steps=4, sides=(128, 32))
    assert list(found.columns) == ["nothing edited", "per frame", "TokenFlow", "true motion"]
    assert list(found.index) == [128, 32] and (found.loc[32] < found.loc[128]).all()
    (task,) = tables.tasks(1, 4, 1)
    clip, model = task.film(), tfkit.load()
    source = tfkit.invert(model, clip, clip.caption, steps=4, progress=False)
    way = tfkit.truth.TrueFlow(tables.INTERVAL, clip=clip)
    made = tfkit.edit(
        model, source, task.prompts[0], guidance=tables.GUIDANCE, propagation=way, progress=False
    )
    error = 1e3 * metrics.warp_error(made.frames, clip.flow, clip.visible)
    assert found.loc[128, "true motion"] == pytest.approx(error, rel=1e-4)


def test_bounds_are_of_the_clip_itself_and_of_the_change_as_filmed(small):
    nothing, filmed = (small[small.method == name] for name in tables.BOUNDS)
    assert set(nothing.metric) == set(filmed.metric) == {"warp_error", "text_alignment", "success"}
    (task, _) = tables.tasks(2, 3, 1)
    of = filmed[(filmed.prompt == task.prompts[0]) & (filmed.metric == "success")]
    assert of.value.tolist() == [1.0] and of.change.tolist() == [task.changes[0].kind]
    floor = nothing[(nothing["clip"] == task.caption) & (nothing.metric == "warp_error")].value
    model, clip = tfkit.load(), task.film()
    decoded = model.decode(model.encode(clip), size=(128, 128))
    assert floor.tolist() == [metrics.warp_error(decoded, clip.flow, clip.visible)]
    assert nothing[nothing.metric == "success"].value.mean() < 0.5


def test_without_frames_edited_alone_nothing_stands_beside_the_paper(small):
    with pytest.raises(ValueError, match="no warp error of 'PnP, per frame' in the table"):
        paper.beside_the_paper(small[small.method != "PnP, per frame"])


def made_up(errors):
    """A table of warp errors x 10^3: {method: one for each prompt}."""
    return pd.DataFrame(
        [("A", str(i), name, "warp_error", value / 1e3)
         for name, each in errors.items() for i, value in enumerate(each)],
        columns=["clip", "prompt", "method", "metric", "value"],
    )  # fmt: skip


def test_what_is_beyond_the_floor_is_told_by_how_much_there_is():
    errors = {
        "nothing edited": [1, 1, 1, 1], "PnP, per frame": [9, 2, 5, 2],
        "PnP, TokenFlow": [3, 2, 2, 1],
    }  # fmt: skip
    found = readings.beyond_the_floor(made_up(errors), parts=2)
    assert list(found.index) == ["1 of 2", "2 of 2", "all"]
    assert found.share.tolist() == pytest.approx([1.5 / 2, 2.5 / 7, 2 / 4.5])
    assert found.beyond.tolist() == pytest.approx([0.5 / 1, 1.5 / 6, 1 / 3.5])
    pairs = {"nothing edited": [0, 0], "PnP, per frame": [2, 8], "PnP, TokenFlow": [1, math.nan]}
    assert readings.beyond_the_floor(made_up(pairs), parts=1).share.tolist() == [0.5, 0.5]
    for wrong in ({"parts": 5}, {"base": "nobody"}):
        with pytest.raises(ValueError, match="expected a table of"):
            readings.beyond_the_floor(made_up(errors), **wrong)


def test_more_steps_are_compared_on_the_prompts_that_both_tables_have():
    few = made_up({"PnP, per frame": [4, 2, 9], "PnP, TokenFlow": [3, 2, 1]})
    many = made_up({"PnP, per frame": [8, 4], "PnP, TokenFlow": [3, 2]})
    some = {
        steps: pd.concat([table, table.assign(metric="success", value=table.value * 100)])
        for steps, table in ((10, few), (50, many))
    }
    found = readings.by_steps(some)
    assert found.index.tolist() == [10, 50]
    assert found["PnP, per frame"].tolist() == pytest.approx([3, 6])
    assert found.share.tolist() == pytest.approx([5 / 6, 5 / 12])
    assert found["success, PnP, TokenFlow"].tolist() == pytest.approx([25, 25])
    for wrong in ({}, {10: few}, {10: some[10], 50: many.assign(metric="success")}):
        with pytest.raises(ValueError, match="no prompt has"):
            readings.by_steps(wrong)


def test_some_methods_alone_are_measured_on_demand(tmp_path, capsys):
    command = ["tables", "--clips", "2", "--frames", "2", "--prompts", "1", "--steps", "2",
               "--folder", str(tmp_path / "kept"), "--only", "PnP, per frame"]  # fmt: skip
    assert main(command) == 2 and not (tmp_path / "kept").exists()
    assert "expected an --output" in capsys.readouterr().err
    assert main([*command, "nothing", "--output", str(tmp_path / "t.csv")]) == 2
    assert "some of 'PnP, per frame', 'PnP, first frame'" in capsys.readouterr().err
    output = ["--output", str(tmp_path / "t.csv")]
    assert main([*command, "--steps", "2000", *output]) == 2 and not (tmp_path / "kept").exists()
    assert "steps=2000: expected" in capsys.readouterr().err
    assert main([*command, *output]) == 0
    table, about = readings.read_table(tmp_path / "t.csv")
    assert set(table.method) == {"PnP, per frame", *tables.BOUNDS} and about["steps"] == 2


def test_a_table_is_read_as_it_was_written(small, tmp_path):
    path = readings.write_table(tmp_path / "t.csv", small, clips=2)
    table, about = readings.read_table(path)
    assert about["clips"] == 2 and about["weights"] == tfkit.load().fingerprint()
    assert about["methods"]["SDEdit"].startswith("SDEdit(start=0.7") and about["guidance"] == 4
    assert table.drop(columns=["value", "seconds"]).equals(small.drop(columns=["value", "seconds"]))
    assert all(
        math.isclose(a, b, rel_tol=1e-5) for a, b in zip(table.value, small.value, strict=True)
    )


def test_other_files_are_not_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m tfkit tables"):
        readings.read_table(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a table"):
        readings.read_table(tmp_path / "a.csv")
    for first in ("5", '"a"', "[1]"):
        (tmp_path / "c.csv").write_text(f"# {first}\na,b\n1,2\n")
        with pytest.raises(ValueError, match=r"is not a table.*first line"):
            readings.read_table(tmp_path / "c.csv")
    (tmp_path / "b.csv").write_text("# {}\na,b\n1,2\n")
    with pytest.raises(ValueError, match="has the columns a, b"):
        readings.read_table(tmp_path / "b.csv")


def test_the_table_of_fifty_steps_is_of_these_weights_and_prompts():
    table, about = readings.read_table(readings.AT_50)
    made_with = {name: about[name] for name in ("weights", "ControlNet", "CLIP")}
    assert made_with == readings.of_weights() and (about["steps"], about["clips"]) == (50, 24)
    assert not table.error.any()
    chosen = tables.tasks(about["clips"], about["frames"], 1)
    asked = [(task.caption, task.prompts[0]) for task in chosen]
    pairs = [
        (f"{name}, per frame", f"{name}, TokenFlow") for name in ("PnP", "SDEdit", "ControlNet")
    ]
    between = {"PnP, joint attention", "PnP, fixed keyframes"}
    assert set(table.method) == {*sum(pairs, ()), *between, *tables.FURTHER, *tables.BOUNDS}
    for _, rows in table.groupby("method"):
        assert set(zip(rows["clip"], rows.prompt, strict=True)) == set(asked)
    for pair in pairs:
        more = readings.by_steps({10: readings.read_table()[0], 50: table}, *pair)
        assert more.share[50] < more.share[10] < 1


def test_the_stored_table_is_of_these_weights_and_whole():
    table, about = readings.read_table()
    made_with = {name: about[name] for name in ("weights", "ControlNet", "CLIP")}
    assert made_with == readings.of_weights(), "stale: run python -m tfkit tables"
    assert not table.error.any() and table["clip"].nunique() == about["clips"] == 24
    assert set(table.method) == {*tables.CONTENDERS, *tables.REBUILT, *tables.BOUNDS}
    edits = table[table.metric != "psnr"].drop_duplicates(["method", "clip", "prompt"])
    methods = len(tables.CONTENDERS) + len(tables.BOUNDS)
    assert len(edits) == 24 * about["prompts"] * methods


def test_a_table_that_was_altered_is_told(small, tmp_path):
    path = readings.write_table(tmp_path / "t.csv", small, clips=2)
    whole = path.read_bytes()
    rows = whole.index(b"\n") + 1
    for place in range(rows, len(whole), 101):
        for bit in (1, 128):  # another number, or no text at all
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.raises(ValueError, match=r"t\.csv' is not a table"):
                readings.read_table(path)
