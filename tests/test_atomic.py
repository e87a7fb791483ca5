"""Whatever is written appears whole or not at all."""

import os
import time

import pytest
import torch

from tfkit import write_video
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


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    there, link = tmp_path / "big" / "frames", tmp_path / "out"
    there.mkdir(parents=True)
    (there / "0000.png").write_text("old")
    link.symlink_to(there)
    write_video(link, torch.rand(2, 3, 8, 8))
    assert link.is_symlink() and len(list(there.iterdir())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "out"]
    assert list(there.parent.iterdir()) == [there]


def test_a_folder_has_its_place_again_if_anything_comes_between(tmp_path, monkeypatch):
    path, moved, move = tmp_path / "frames", [], os.replace
    path.mkdir()
    (path / "1.png").write_text("old")

    def interrupted(source, target):
        moved.append(target)
        if len(moved) == 2:  # the old one is away, and the new one not yet there
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.mkdir()
    assert [file.name for file in tmp_path.iterdir()] == ["frames"]
    assert (path / "1.png").read_text() == "old"


def test_a_folder_whose_place_another_has_goes_with_the_next(tmp_path):
    path, long_ago = tmp_path / "frames", time.time() - 9e3
    old, lost = (tmp_path / f".old-0000000{i}-{name}" for i, name in enumerate(("frames", "b")))
    for folder in (old, lost):
        folder.mkdir()
        os.utime(folder, (long_ago, long_ago))
    write_video(path, torch.zeros(2, 3, 16, 16))
    assert old.exists()  # nothing was in its place: all there was
    write_video(path, torch.zeros(2, 3, 16, 16))
    assert not old.exists() and lost.exists()


def test_what_killed_writers_left_of_a_video_goes_with_the_next(tmp_path):
    path, now = tmp_path / "fox [1].mp4", time.time()
    names = {
        ".new-00000001-fox [1].mp4": 9e3,
        ".new-00000002-fox [1].mp4": 60,
        ".new-00000003-a-fox [1].mp4": 9e3,
    }
    for name, age in names.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (now - age, now - age))
    write_video(path, torch.zeros(2, 3, 16, 16))
    left = {
        ".new-00000002-fox [1].mp4",
        ".new-00000003-a-fox [1].mp4",
    }  # being written perhaps; of another video
    assert {file.name for file in tmp_path.iterdir()} == {path.name, *left}
    frames = tmp_path / ".new-00000004-frames"
    frames.mkdir()
    os.utime(frames, (now - 9e3, now - 9e3))
    write_video(tmp_path / "frames", torch.zeros(2, 3, 16, 16))
    assert not frames.exists() and len(list((tmp_path / "frames").iterdir())) == 2
