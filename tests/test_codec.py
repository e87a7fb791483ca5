"""Files of all kinds: what comes back from them, upright and in the right colours."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from clips import decibels, moving
from PIL import Image

from tfkit.video import Clip, to_uint8, video_bytes
from tfkit.video_file import read_video
from tfkit.writing import write_video


def save(folder, *images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "gif"])
@pytest.mark.parametrize("h, w", [(32, 48), (31, 45)])
def test_a_lossy_round_trip_stays_close(tmp_path, suffix, h, w):
    frames = moving(h=h, w=w)
    path = write_video(tmp_path / f"a.{suffix}", frames, fps=10)
    back = read_video(str(path))
    assert back.fps == 10 and len(back) == 6 and path == tmp_path / f"a.{suffix}"
    even = suffix != "gif"
    assert back.frames.shape[-2:] == (h + h % 2 * even, w + w % 2 * even)
    assert decibels(back.frames[..., :h, :w], frames) > (32 if even else 29)
    if even and h % 2:  # the doubled edge
        assert decibels(back.frames[..., -1, :w], frames[..., -1, :]) > 25


def test_a_folder_of_pngs_is_exact_to_a_byte(tmp_path):
    frames = moving()
    path = write_video(tmp_path / "new" / "frames", frames)
    assert sorted(p.name for p in path.iterdir()) == [f"000{i}.png" for i in range(6)]
    assert (read_video(path).frames - frames).abs().max() <= 0.5 / 255 + 1e-6


def test_equal_frames_still_count_in_a_gif(tmp_path):
    still = moving(1).expand(5, -1, -1, -1)
    assert len(read_video(write_video(tmp_path / "a.gif", still))) == 5


@pytest.mark.parametrize("durations", [{}, {"duration": 0}, {"duration": [100] * 4 + [2000]}])
def test_a_gif_of_frames_without_durations_has_them_all(tmp_path, durations):
    """ffmpeg takes the first two for one frame; the third holds its last one for a while."""
    frames = moving(5)
    first, *rest = (Image.fromarray(pixels) for pixels in to_uint8(frames))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, **durations)
    clip = read_video(tmp_path / "a.gif")
    assert decibels(clip.frames, frames) > 25
    assert clip.fps == (8 if durations.get("duration", 0) == 0 else 10)


def test_a_gif_that_keeps_no_time_is_told(tmp_path):
    first, *rest = (Image.fromarray(pixels) for pixels in to_uint8(moving(4)))
    times = [100, 300, 100, 100]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=times)
    with pytest.warns(UserWarning, match="unequal times"):
        assert len(read_video(tmp_path / "a.gif")) == 4


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.mkv"])
def test_a_video_cut_off_is_never_read_as_a_short_one(tmp_path, name, part):
    frames = moving(24, h=96, w=128)
    frames = (frames + 0.05 * torch.rand(frames.shape)).clamp(0, 1)
    path = write_video(tmp_path / name, frames)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    if name == "a.mkv":  # its frames that are there are whole
        with pytest.warns(UserWarning, match=r"3\.00 s of video.*seems to be cut off"):
            assert len(read_video(path)) < 23
    else:
        with pytest.raises(ValueError, match=r"cannot be (decoded|read as a GIF)"):
            read_video(path)
    assert len(read_video(path, frames=3)) == 3


def test_encoding_repeats_byte_by_byte(tmp_path):
    clip = Clip(moving(), fps=5)
    for _ in range(5):
        torch.rand(torch.randint(90_000, ()))  # stir the heap: nothing unwritten may be read
        assert video_bytes(clip) == video_bytes(clip) != video_bytes(clip, fps=6)
    for name in ("a.mp4", "a.gif"):
        first = write_video(tmp_path / name, clip).read_bytes()
        assert write_video(tmp_path / name, clip).read_bytes() == first


def marked(path, a, b, c, d):
    """Give an mp4 a display matrix in its track header, as phones do it."""
    matrix = np.array([[a, b, 0], [c, d, 0], [0, 0, 1]], float)
    fixed = (matrix * [2**16, 2**16, 2**30]).astype(">i4").tobytes()
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = fixed
    path.write_bytes(data)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phones_rotation_is_honoured(tmp_path, degrees):
    corner = torch.zeros(2, 3, 32, 48)
    corner[..., :16, :24] = 1  # upper left
    path = write_video(tmp_path / "a.mp4", corner)
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    marked(path, a, b, -b, a)
    expected = torch.rot90(corner, -degrees // 90, (2, 3))  # clockwise, as the matrix says
    assert decibels(read_video(path).frames, expected) > 25


@pytest.mark.parametrize("a", [-1, 1])
@pytest.mark.parametrize("d", [-1, 1])
@pytest.mark.parametrize("across", [False, True])
def test_a_mirrored_picture_is_shown_as_players_show_it(tmp_path, a, d, across):
    """As front cameras may mark it: a pixel at (x, y) is shown at (ax + cy, bx + dy)."""
    picture = torch.zeros(2, 3, 32, 48)
    picture[:, 0, :16, :24], picture[:, 1, :16, 24:], picture[:, 2, 16:, :24] = 1, 1, 1
    path = write_video(tmp_path / "a.mp4", picture)
    plain = read_video(path).frames
    marked(path, *((0, d, a, 0) if across else (a, 0, 0, d)))
    expected = plain.transpose(2, 3) if across else plain
    expected = expected.flip([side for side, way in ((3, a), (2, d)) if way < 0])
    assert torch.equal(read_video(path).frames, expected)


def test_images_come_in_natural_order_and_junk_is_passed_over(tmp_path):
    for i in (1, 2, 10, 9):
        Image.new("L", (4, 4), i).save(tmp_path / f"f{i}.png")
    (tmp_path / "._f3.png").write_bytes(b"what macOS leaves")
    (tmp_path / "notes.txt").write_text("no image")
    frames = read_video(tmp_path).frames
    assert (frames[:, 0, 0, 0] * 255).round().tolist() == [1, 2, 9, 10]


@pytest.mark.parametrize("kind", ["jpg", "webp", "png"])
def test_other_images_and_single_ones(tmp_path, kind):
    pixels = next(to_uint8(moving(1)))
    Image.fromarray(pixels).save(tmp_path / f"a.{kind}", quality=95)
    for path in (tmp_path, tmp_path / f"a.{kind}"):
        assert decibels(read_video(path).frames, moving(1)) > 28


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = [255, 0, 0, 255]
    rgba[3] = [0, 0, 0, 51]
    frames = read_video(save(tmp_path / "rgba", rgba)).frames[0, :, :, 0].T
    expected = [[1, 0, 0], [1, 0, 0], [1, 1, 1], [0.8, 0.8, 0.8]]
    assert torch.allclose(frames, torch.tensor(expected), atol=1e-6)
    (tmp_path / "p").mkdir()
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([9, 9, 9] * 8)
    palette.save(tmp_path / "p" / "a.png", transparency=3)
    palette.save(tmp_path / "a.gif", transparency=3)
    assert read_video(tmp_path / "p").frames.min() == 1
    assert read_video(tmp_path / "a.gif").frames.min() == 1


def test_sixteen_bits_are_scaled_and_grey_becomes_rgb(tmp_path):
    deep = np.array([[0, 65535], [32768, 13107]], np.uint16)
    frame = read_video(save(tmp_path / "grey", deep)).frames
    assert frame.shape == (1, 3, 2, 2)
    assert torch.allclose(frame[0, 2], torch.tensor([[0, 1], [0.5, 0.2]]), atol=1e-4)
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "rgb").mkdir()
    cv2.imwrite(str(tmp_path / "rgb" / "0.png"), np.dstack([deep, deep // 2, 0 * deep]))
    frame = read_video(tmp_path / "rgb").frames[0]
    assert torch.allclose(frame[2], torch.tensor([[0, 1], [0.5, 0.2]]), atol=3e-3)
    assert torch.allclose(frame[1], frame[2] / 2, atol=3e-3) and frame[0].max() == 0


def test_an_exif_turn_is_honoured(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_video(tmp_path).frames.shape == (1, 3, 8, 4)


def damaged(folder, what):
    """Paths that cannot be read, each in its own way."""
    path = folder / {"text": "a.txt", "image": "a.png"}.get(what, "a.mp4")
    if what == "folder":
        path.mkdir()
    elif what == "sizes":
        return save(folder / "s", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8))
    elif what == "half":
        write_video(path, moving())
        path.write_bytes(path.read_bytes()[:500])
    elif what != "missing":
        path.write_text("" if what == "empty" else "words\n" * 99)
    return path


def test_an_image_too_large_to_unpack_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "s", np.zeros((30, 30, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(ValueError, match=r"0.png' cannot be read as an image: Image size \(900"):
        read_video(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_rate_is_said(tmp_path, suffix):
    """Frames are taken one by one: four seconds would become a quarter of one."""
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for at in (0, 1, 2, 60, 61, 62, 120):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.warns(UserWarning, match=rf"a.{suffix}' shows its frames for unequal") as said:
        assert len(read_video(path)) == 7
    assert len(said) == 1


@pytest.mark.parametrize(
    "what, error, message",
    [
        ("missing", FileNotFoundError, r"a.mp4' does not exist \(looked from .*expected a video"),
        ("folder", ValueError, r"the folder '.*' has no images; expected .png"),
        ("sizes", ValueError, r"1.png' is 4x6 but '0.png' is 4x4; all images of a folder must"),
        ("image", ValueError, r"a.png' cannot be read as an image: "),
        ("half", ValueError, r"a.mp4' cannot be decoded \(.*\); is it a video, and complete"),
        ("empty", ValueError, r"cannot be decoded"),
        ("garbage", ValueError, r"cannot be decoded \(Invalid data"),
        ("text", ValueError, r"a.txt' has no video in it; expected"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, what, error, message):
    with pytest.raises(error, match=message):
        read_video(damaged(tmp_path, what))


@pytest.mark.parametrize("suffix", ["webp", "png", "tif"])
def test_an_image_of_many_frames_is_no_image(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    first, *rest = (Image.new("RGB", (16, 16), (60 * i, 0, 0)) for i in range(4))
    first.save(path, save_all=True, append_images=rest)
    for where in (path, tmp_path):
        with pytest.raises(ValueError, match=rf"moving.{suffix}' cannot .* it has 4 frames"):
            read_video(where)


def test_floats_are_no_pixels(tmp_path):
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif' cannot .* its pixels are floats"):
        read_video(tmp_path / "a.tif")


def test_a_title_that_is_not_utf_8_is_no_damage(tmp_path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XXXX"
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"caf\xe9"))
    assert len(read_video(path)) == 1


def test_a_cameras_previews_are_no_frames(tmp_path):
    image, small = (Image.new("RGB", (side, side), (200, 0, 0)) for side in (32, 8))
    image.save(tmp_path / "1.jpg", format="MPO", save_all=True, append_images=[small])
    tiff, tag = tmp_path / "2.tif", struct.pack("<HHI", 254, 4, 1)  # NewSubfileType, a LONG
    image.copy().save(tiff, save_all=True, append_images=[small.copy()], tiffinfo={254: 0})
    before, _, after = tiff.read_bytes().rpartition(tag)
    tiff.write_bytes(before + tag + struct.pack("<I", 1) + after[4:])  # the second is a reduced one
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as seen:
            assert seen.n_frames == 2
        assert read_video(path).frames.shape == (1, 3, 32, 32)
