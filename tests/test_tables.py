"""The paper's tables on the benchmark: what is asked, what is stored, and that it is not stale."""

import math
from collections import Counter

import pytest

import tfkit
from tfkit import tables
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
    counts = small.groupby("method").metric.unique()
    assert set(counts["PnP, TokenFlow"]) == set(tables.MEASURED)
    assert set(counts["DDIM inversion"]) == {"psnr"}
    rebuilt = small[small.metric == "psnr"].groupby("method").value.mean()
    assert rebuilt["LDM reconstruction"] > rebuilt["DDIM inversion"]  # which has all its losses


def test_ours_stand_beside_the_papers(small):
    beside = tables.beside_the_paper(small)
    assert list(beside.index) == [
        "PnP, per frame",
        "joint attention",
        "fixed keyframes",
        "TokenFlow",
    ]
    assert beside["over per frame", "tfkit"].iloc[0] == "1.00"
    assert beside["over per frame", "paper"].to_dict()["TokenFlow"] == "0.27"
    of = small[(small.method == "PnP, TokenFlow") & (small.metric == "warp_error")]
    expected = f"{1e3 * of.value.mean():.2f}"
    assert beside["warp error ×10³", "tfkit"]["TokenFlow"].startswith(expected)


def test_a_table_is_read_as_it_was_written(small, tmp_path):
    path = tables.write_table(tmp_path / "t.csv", small, clips=2)
    table, about = tables.read_table(path)
    assert about["clips"] == 2 and about["weights"] == tfkit.load().fingerprint()
    assert table.drop(columns=["value", "seconds"]).equals(small.drop(columns=["value", "seconds"]))
    assert all(
        math.isclose(a, b, rel_tol=1e-5) for a, b in zip(table.value, small.value, strict=True)
    )


def test_other_files_are_not_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m tfkit tables"):
        tables.read_table(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a table"):
        tables.read_table(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("# {}\na,b\n1,2\n")
    with pytest.raises(ValueError, match="has the columns a, b"):
        tables.read_table(tmp_path / "b.csv")


def test_the_stored_table_is_of_these_weights_and_whole():
    table, about = tables.read_table()
    assert about["weights"] == tfkit.load().fingerprint(), "stale: run python -m tfkit tables"
    assert not table.error.any() and table["clip"].nunique() == about["clips"] == 24
    assert set(table.method) == {*tables.CONTENDERS, *tables.REBUILT}
    edits = table[table.metric != "psnr"].drop_duplicates(["method", "clip", "prompt"])
    assert len(edits) == 24 * about["prompts"] * len(tables.CONTENDERS)
