"""Whatever is written appears whole or not at all."""

import pytest

from tfkit.atomic import left_over, replacing


def test_a_file_takes_the_place_of_one_and_parents_are_made(tmp_path):
    path = tmp_path / "a" / "b.json"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert path.exists() == (text == "new") and temporary.suffix == ".json"
            assert left_over(path.parent) == left_over(path.parent, "b.json") == [temporary]
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "b"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_a_folder_and_a_file_never(tmp_path):
    path = tmp_path / "frames"
    path.mkdir()
    (path / "1.png").write_text("old")
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_text("a file")
    assert (path / "1.png").read_text() == "old"
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "2.png").write_text("new")
    assert [file.name for file in path.iterdir()] == ["2.png"]
    assert list(tmp_path.iterdir()) == [path]
