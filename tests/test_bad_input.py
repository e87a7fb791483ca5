"""A user's mistakes, through the public face: each is refused by a message that quotes what was
given and says what was expected."""

import os
import re
import struct
import zlib
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import av
import pytest
import torch
from clips import moving
from PIL import Image
from pipelines import moving_latents

import tfkit
from tfkit.swapping import rebuild, rebuild_from_latents
from tfkit.video import resize

LAYER = "up_blocks.1.attentions.1.transformer_blocks.0.attn1"
X, FRAMES = moving_latents(3, 8, 8), moving(3, 64, 64)
NAN = torch.tensor(torch.nan)


def read(folder, name, data):
    """A file of these bytes, beside the folder, as a video."""
    path = folder.parent / name
    path.write_bytes(data)
    return tfkit.read_video(path)


def movie(frames):
    """The bytes of a Matroska file."""
    memory = BytesIO()
    with av.open(memory, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.start_encoding()
        for frame in frames:
            pixels = (255 * frame).byte().movedim(0, -1).numpy()
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if len(frames):
            out.mux(stream.encode(None))
    return memory.getvalue()


def picture(side=8):
    """The bytes of a PNG that says it has so many rows and columns."""
    memory = BytesIO()
    Image.new("L", (8, 8)).save(memory, "PNG")
    data = bytearray(memory.getvalue())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


# What is done, with the model m, a trajectory s of three frames and steps 501 and 1, and an empty
# folder; then what is raised.
INVERT = {
    "looking ahead at a path": (
        lambda m, s, d: tfkit.preflight(m, d / "a.mp4", "a cat"),
        r"frames is of type \w*Path; expected .*: tfkit\.read_video\('.*a\.mp4'\) reads one",
    ),
    "folder of no name": (
        lambda m, s, d: tfkit.invert(m, FRAMES, folder=""),
        r"folder='': expected a path",
    ),
    "no frames": (lambda m, s, d: tfkit.invert(m, FRAMES[:0]), r"frames.*\(0, 3, 64, 64\)"),
    "one picture": (lambda m, s, d: tfkit.invert(m, FRAMES[0]), r"\(3, 64, 64\); expected frames"),
    "channels last": (
        lambda m, s, d: tfkit.invert(m, FRAMES.movedim(1, -1)),
        r"\(3, 64, 64, 3\); expected frames \(f, 3, h, w\) or latents \(f, 4, h, w\)",
    ),
    "an array": (lambda m, s, d: tfkit.invert(m, FRAMES.numpy()), r"a ndarray; expected frames"),
    "a path": (lambda m, s, d: tfkit.invert(m, "wolf.mp4"), r"a str; expected .*tfkit\.open_video"),
    "bytes": (lambda m, s, d: tfkit.invert(m, (255 * FRAMES).byte()), r"torch\.uint8; .*x / 255"),
    "0 to 255": (
        lambda m, s, d: tfkit.invert(m, 255 * FRAMES),
        r"span 0 to 255; expected \[0, 1\]",
    ),
    "-1 to 1": (lambda m, s, d: tfkit.invert(m, FRAMES * 2 - 1), r"span -1 to .*; expected \[0"),
    "NaN frames": (lambda m, s, d: tfkit.invert(m, FRAMES * NAN), r"frames hold NaN or infinity"),
    "NaN latents": (lambda m, s, d: tfkit.invert(m, X * NAN), r"latents hold NaN or infinity"),
    "frames with alpha": (
        lambda m, s, d: tfkit.invert(m, torch.rand(2, 4, 8, 8)),
        r"which look like frames, not like latents .* \(with alpha: x\[:, :3\]\)",
    ),
    "frames as bytes": (
        lambda m, s, d: tfkit.invert(m, FRAMES.permute(0, 2, 3, 1).numpy()),
        r"a ndarray; expected frames .* \(channels last: torch\.from_numpy",
    ),
    "frames in a list": (
        lambda m, s, d: tfkit.invert(m, [*FRAMES]),
        r"a list; .*torch\.stack\(x\)",
    ),
    "a path to invert": (lambda m, s, d: tfkit.invert(m, "a.mp4"), r"read_video\('a\.mp4'\) reads"),
    "whole latents": (lambda m, s, d: tfkit.invert(m, X.long()), r"latents of torch\.int64; exp"),
    "empty latents": (
        lambda m, s, d: tfkit.invert(m, X[..., :0]),
        r"\(3, 4, 8, 0\); expected \(f, 4",
    ),
    "no prompt": (lambda m, s, d: tfkit.invert(m, X, None), r"prompt=None: expected a string"),
    "prompts": (lambda m, s, d: tfkit.invert(m, X, ["a cat"]), r"prompt=\['a cat'\]: expected a"),
    "steps 0": (lambda m, s, d: tfkit.invert(m, X, steps=0), r"steps=0: expected a whole number"),
    "steps 1000": (lambda m, s, d: tfkit.invert(m, X, steps=1000), r"steps=1000: .*at most 999"),
    "steps 2.5": (lambda m, s, d: tfkit.invert(m, X, steps=2.5), r"steps=2\.5: .* from 1 to 999"),
    "fixed point": (
        lambda m, s, d: tfkit.invert(m, X, fixed_point=-1),
        r"fixed_point=-1: expected",
    ),
    "batch": (lambda m, s, d: tfkit.invert(m, X, batch=0), r"batch=0: expected a whole number of"),
    "a folder in use": (lambda m, s, d: tfkit.invert(m, X, folder=d.parent), r"is not empty and"),
}
EDIT = {
    "no trajectory": (
        lambda m, s, d: tfkit.edit(m, X, "a dog"),
        r"source.* a Tensor.*expected a Tr",
    ),
    "edit None": (lambda m, s, d: tfkit.edit(m, s, None), r"prompt=None: expected a string"),
    "negative": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", negative_prompt=3),
        r"prompt=3: expected a string",
    ),
    "guidance text": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", guidance="high"),
        r"guidance='high': expected a finite number",
    ),
    "guidance below 0": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", guidance=-3),
        r"guidance=-3: expected a finite number from 0 on.*negative_prompt",
    ),
    "zero bytes": (
        lambda m, s, d: tfkit.edit(m, s, "a dog\0"),
        r"prompt='a dog\\x00' holds zero bytes; expected words",
    ),
    "another size": (
        lambda m, s, d: tfkit.edit(m, replace(s, size=(64, 128)), "a dog"),
        r"latents of 8 x 8 and says that its frames are of 64 x 128, which makes 8 x 16",
    ),
    "guidance NaN": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", guidance=float("nan")),
        r"guidance=nan: expected a finite number",
    ),
    "edit batch": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", batch=0),
        r"batch=0: expected a whole",
    ),
    "seed": (lambda m, s, d: tfkit.edit(m, s, "a dog", seed="x"), r"seed='x'.*expected"),
    "method": (lambda m, s, d: tfkit.edit(m, s, "a dog", method="pnp"), r"method.*'pnp'.*expected"),
    "method class": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", method=tfkit.Plain),
        r"method.*Plain.*expected",
    ),
    "propagation": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", propagation="tokenflow"),
        r"propagation.*'tokenflow'.*expected",
    ),
    "too few rows": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[[0]]),
        r"keyframes for 1 steps, but the edit takes 2",
    ),
    "beyond the clip": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[0, 3]),
        r"keyframes span 0 to 3: expected frame indices from 0 to 2",
    ),
    "negative index": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[-1]),
        r"keyframes span -1 to -1: expected",
    ),
    "out of order": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[[0, 1], [2, 1]]),
        r"keyframes \[2, 1\]: expected each step's in ascending order",
    ),
    "twice the same": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[1, 1]),
        r"keyframes \[1, 1\]: expected .* none twice",
    ),
    "half a frame": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[0.5]),
        r"keyframes=\[.*float32: expected whole numbers",
    ),
    "keyframes complex": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[1j]),
        r"keyframes=\[.*complex64: expected whole numbers",
    ),
    "no keyframes": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[]),
        r"keyframes=\[.*\(0,\).*expected whole numbers",
    ),
    "ragged keyframes": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[[0], [0, 1]]),
        r"keyframes.*\[\[0\], \[0, 1\]\].*expected",
    ),
    "keyframes in words": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes="all"),
        r"keyframes.*'all'.*expected",
    ),
    "one for each interval": (
        lambda m, s, d: tfkit.edit(
            m, s, "a dog", keyframes=[0], propagation=tfkit.TokenFlow(2, "reference")
        ),
        r"1 keyframes: the reference variant takes one for each interval, 2 for 3 frames",
    ),
    "two in one interval": (
        lambda m, s, d: tfkit.edit(
            m, s, "a dog", keyframes=[0, 1], propagation=tfkit.TokenFlow(2, "reference")
        ),
        r"keyframes \[\[0, 1\].*: the reference variant takes one in each interval of 2 frames",
    ),
    "keyframes for none": (
        lambda m, s, d: tfkit.edit(m, s, "a dog", keyframes=[0], propagation=tfkit.PerFrame()),
        r"PerFrame takes no keyframes",
    ),
    "redrawn where none are": (
        lambda m, s, d: tfkit.EditSession(m, s, "a dog", propagation=tfkit.PerFrame()).redraw(1),
        r"seed=1: PerFrame\(\) draws no keyframes; expected a propagation that does",
    ),
    "reconstruct": (
        lambda m, s, d: tfkit.reconstruct(m, X),
        r"source is a Tensor; expected a Traj",
    ),
    "reconstruct batch": (lambda m, s, d: tfkit.reconstruct(m, s, batch=-2), r"batch=-2: expected"),
}
SETTINGS = {
    "interval 0": (
        lambda m, s, d: tfkit.TokenFlow(0),
        r"interval=0: expected a whole number of at",
    ),
    "interval 2.5": (lambda m, s, d: tfkit.TokenFlow(2.5), r"interval=2\.5: expected a whole"),
    "variant": (
        lambda m, s, d: tfkit.TokenFlow(variant="Paper"),
        r"variant='Paper': expected one of 'paper', 'reference'",
    ),
    "field": (
        lambda m, s, d: tfkit.TokenFlow(field="key"),
        r"field='key': expected one of None, '",
    ),
    "blend": (lambda m, s, d: tfkit.TokenFlow(blend=0.5), r"blend=0\.5: expected one of 'sigmoid'"),
    "keyframes": (
        lambda m, s, d: tfkit.TokenFlow(keyframes=[0, 8]),
        r"keyframes=\[0, 8\]: expected one of 'random', 'fixed'",
    ),
    "attention": (
        lambda m, s, d: tfkit.PlugAndPlay(attention=1.5),
        r"attention=1\.5: expected a share of the steps, from 0 to 1",
    ),
    "convolution": (
        lambda m, s, d: tfkit.PlugAndPlay(convolution=40),
        r"convolution=40: expected a share of the steps",
    ),
    "NaN share": (lambda m, s, d: tfkit.PlugAndPlay(float("nan")), r"attention=nan: expected a sh"),
    "start": (lambda m, s, d: tfkit.SDEdit(start=-0.1), r"start=-0\.1: expected a share of the st"),
    "start in words": (lambda m, s, d: tfkit.SDEdit("half"), r"start='half': expected a share of"),
}
TOKENS = {
    "of a clip": (
        lambda m, s, d: tfkit.extract_tokens(m, tfkit.Clip(FRAMES), timestep=1, layers=LAYER),
        r"source is a Clip; expected a Trajectory, as tfkit\.invert returns, or what tfkit\.tokens",
    ),
    "timestep": (
        lambda m, s, d: tfkit.extract_tokens(m, s, timestep=500, layers=LAYER),
        r"timestep 500 is not on this trajectory of 2 steps; the nearest one is 501",
    ),
    "a timestep that is none": (
        lambda m, s, d: tfkit.extract_tokens(m, s, timestep=True, layers=LAYER),
        r"timestep True is not on this trajectory",
    ),
    "half a timestep": (
        lambda m, s, d: tfkit.extract_tokens(m, s, timestep=1.5, layers=LAYER),
        r"timestep 1\.5 is not on this trajectory",
    ),
    "timestep in words": (
        lambda m, s, d: tfkit.extract_tokens(m, s, timestep="last", layers=LAYER),
        r"timestep 'last' is not on this trajectory of 2 steps \(see \.timesteps\)",
    ),
    "layer": (
        lambda m, s, d: tfkit.extract_tokens(m, s, timestep=1, layers="up_blocks.9.*"),
        r"layer 'up_blocks\.9\.\*' fits no self-attention .* among: down_blocks\.0\.attentions\.0",
    ),
    "no layers": (
        lambda m, s, d: tfkit.extract_tokens(m, s, timestep=1, layers=[]),
        r"layers=\[\]: expected at least one of: down_blocks",
    ),
    "widths": (
        lambda m, s, d: tfkit.nearest_neighbors(X[0, 0], X[0, 0, :, :5]),
        r"query \(8, 8\) and keys \(8, 5\): expected tokens of one width",
    ),
    "no keys": (
        lambda m, s, d: tfkit.nearest_neighbors(X[0, 0], X[0, 0, :0]),
        r"query \(8, 8\) and keys \(0, 8\): expected .* at least one key",
    ),
    "one token": (
        lambda m, s, d: tfkit.nearest_neighbors(X[0, 0, 0], X[0, 0]),
        r"query \(8,\) and keys \(8, 8\): expected \(n, d\) and \(m, d\)",
    ),
    "a field of lists": (
        lambda m, s, d: tfkit.nearest_neighbors([[1.0]], [[1.0]]),
        r"query.*list.*expected",
    ),
    "components": (lambda m, s, d: tfkit.TokenPCA(0), r"components=0.*expected"),
    "too few tokens": (
        lambda m, s, d: tfkit.TokenPCA(3).fit(torch.rand(2, 8)),
        r"2 tokens of width 8: expected at least 3",
    ),
    "not fitted": (
        lambda m, s, d: tfkit.TokenPCA().to_rgb(torch.rand(2, 8)),
        r"call fit\(tokens\)",
    ),
    "another width": (
        lambda m, s, d: tfkit.TokenPCA().fit(torch.rand(9, 8)).to_rgb(torch.rand(9, 5)),
        r"tokens of width 5: the basis was fitted to tokens of width 8",
    ),
    "NaN tokens": (lambda m, s, d: tfkit.TokenPCA().fit(torch.rand(9, 8) * NAN), r"NaN"),
}
MODEL = {
    "encode bytes": (
        lambda m, s, d: m.encode((255 * FRAMES).byte()),
        r"torch\.uint8; expected floa",
    ),
    "encode latents": (lambda m, s, d: m.encode(X), r"\(3, 4, 8, 8\); expected \(f, 3, h, w\)"),
    "encode range": (
        lambda m, s, d: m.encode(FRAMES - 0.5),
        r"span -0\.5 to .*; expected \[0, 1\]",
    ),
    "encode batch": (
        lambda m, s, d: m.encode(FRAMES, batch=0),
        r"batch=0: expected a whole number",
    ),
    "decode frames": (lambda m, s, d: m.decode(FRAMES), r"latents of shape \(3, 3, 64, 64\); exp"),
    "decode list": (lambda m, s, d: m.decode([X]), r"latents: a list; expected a tensor"),
    "embed": (lambda m, s, d: m.embed(7), r"prompt=7: expected a string"),
    "t": (lambda m, s, d: m.predict_noise(X, 1000, m.embed("")), r"t=1000: expected a timestep f"),
    "texts": (
        lambda m, s, d: m.predict_noise(X, 1, m.embed("").expand(2, -1, -1)),
        r"text \(2, 77, 32\): expected \(1, l, d\), or one row for each of the 3 latents",
    ),
    "a level": (lambda m, s, d: s.at(7), r"timestep 7 is not on .*; the nearest one is 1 "),
    "load dtype": (
        lambda m, s, d: tfkit.load(dtype="half"),
        r"dtype='half': expected torch\.float",
    ),
    "load device": (
        lambda m, s, d: tfkit.load(device="tpu?"),
        r"device='tpu\?' cannot be used here",
    ),
    "load number": (lambda m, s, d: tfkit.load(1.5, device="cpu"), r"model 1\.5: expected 'menag"),
}
FILM = {
    "film words": (lambda m, s, d: tfkit.menagerie.film("a purple axolotl"), r"axolotl.*It knows"),
    "film number": (lambda m, s, d: tfkit.menagerie.film(3), r"caption=3: expected text"),
    "film frames": (lambda m, s, d: tfkit.menagerie.film("a cat", frames=0), r"frames=0: expected"),
    "film without end": (
        lambda m, s, d: tfkit.menagerie.film("a cat", frames=10**9),
        r"frames=1000000000: filming them takes about 1,303,852 GiB .* expected at most \d+",
    ),
    "two colours": (lambda m, s, d: tfkit.menagerie.film("a red blue cat"), r"'red' and .* 'blue'"),
}
VIDEO = {
    "a clip of latents": (
        lambda m, s, d: tfkit.Clip(X),
        r"\(3, 4, 8, 8\); expected \(f, 3, h, w\)",
    ),
    "fps": (lambda m, s, d: tfkit.Clip(FRAMES, fps=0), r"fps=0; expected frames a second"),
    "write suffix": (
        lambda m, s, d: tfkit.write_video(d / "a.avi", FRAMES),
        r"a\.avi' ends in '\.avi'; expected \.mp4",
    ),
    "write range": (
        lambda m, s, d: tfkit.write_video(d / "a.mp4", 2 * FRAMES),
        r"range from 0 to 2; expected \[0, 1\]",
    ),
    "write nothing": (
        lambda m, s, d: tfkit.write_video(d / "a.mp4", FRAMES[:0]),
        r"\(0, 3, 64, 64",
    ),
    "fps that is none": (
        lambda m, s, d: tfkit.Clip(FRAMES, fps=True),
        r"fps=True; expected frames",
    ),
    "no values": (
        lambda m, s, d: tfkit.invert(m, FRAMES.to("meta"), "a cat", steps=2),
        r"frames is torch\.strided on 'meta'; expected a dense tensor .* that holds values",
    ),
    "sparse frames": (
        lambda m, s, d: tfkit.write_video(d / "a.mp4", FRAMES.to_sparse()),
        r"frames is torch\.sparse_coo on 'cpu'; expected a dense tensor \(sparse: x\.to_dense",
    ),
    "sparse latents": (
        lambda m, s, d: tfkit.invert(m, X.to_sparse(), "a cat", steps=2),
        r"latents is torch\.sparse_coo on 'cpu'; expected a dense tensor",
    ),
    "no screen": (
        lambda m, s, d: resize(FRAMES, 10**7),
        r"size=10000000; expected at most 16384 pixels",
    ),
    "write fps": (lambda m, s, d: tfkit.write_video(d / "a.mp4", FRAMES, -1), r"fps=-1; expected"),
    "read frames": (
        lambda m, s, d: tfkit.read_video(d, frames=0),
        r"frames=0: expected a whole number",
    ),
    "read size": (lambda m, s, d: tfkit.read_video(d, size="big"), r"size='big'; expected"),
    "read start": (lambda m, s, d: tfkit.read_video(d, start=-1), r"start=-1: expected"),
    "read an empty folder": (lambda m, s, d: tfkit.read_video(d), r"holds no|no images|expected"),
}
FILES = {
    "no path": (lambda m, s, d: tfkit.read_video(None), r"path=None: expected a path"),
    "no bytes": (lambda m, s, d: read(d, "a.mp4", b""), r"a\.mp4' cannot be decoded"),
    "half a file": (
        lambda m, s, d: read(d, "a.mp4", movie(FRAMES)[:900]),
        r"a\.mp4' holds no frames; is the file complete",
    ),
    "no frames in it": (lambda m, s, d: read(d, "a.mkv", movie(())), r"a\.mkv' cannot be decoded"),
    "words": (lambda m, s, d: read(d, "a.txt", b"a cat " * 99), r"a\.txt' has no video in it"),
    "half an image": (
        lambda m, s, d: read(d, "a.png", picture()[:40]),
        r"a\.png' cannot be read as",
    ),
    "a huge image": (
        lambda m, s, d: read(d, "a.png", picture(60_000)),
        r"a\.png' cannot be read as an image: Image size \(3600000000 pixels\) exceeds limit",
    ),
    "another schedule": (
        lambda m, s, d: tfkit.edit(m, replace(s, timesteps=(700, 3)), "a dog"),
        r"timesteps start with \(700, 3\), this model's with \(501, 1\).*invert with this one",
    ),
}
for who, call in {
    "inverting": lambda m, s: tfkit.invert(m, FRAMES),
    "reconstructing": lambda m, s: tfkit.reconstruct(m, s),
    "editing": lambda m, s: tfkit.edit(m, s, "a dog"),
    "a session": lambda m, s: tfkit.EditSession(m, s, "a dog"),
    "generating": lambda m, s: tfkit.generate(m, "a dog"),
    "noising": lambda m, s: tfkit.tokens.noised(m, FRAMES),
    "reading tokens": lambda m, s: tfkit.extract_tokens(m, s, timestep=501, layers=LAYER),
    "swapping": lambda m, s: rebuild(m, s),
    "swapping latents": lambda m, s: rebuild_from_latents(m, FRAMES),
    "looking ahead": lambda m, s: tfkit.preflight(m, FRAMES, "a dog"),
    "a LoRA": lambda m, s: tfkit.load_lora(m, "lora.safetensors"),
    "an embedding": lambda m, s: tfkit.load_embedding(m, "word.safetensors"),
}.items():
    MODEL[f"{who} with a name"] = (
        lambda m, s, d, call=call: call("menagerie", s),
        r"model is 'menagerie'; expected a LatentDiffusion: tfkit\.load\(\) returns one",
    )
    MODEL[f"{who} with a pipeline"] = (
        lambda m, s, d, call=call: call(SimpleNamespace(unet=m.unet, vae=m.vae), s),
        r"model is a SimpleNamespace; expected a .*: tfkit\.from_pipeline\(pipeline\) makes one",
    )
if hasattr(os, "mkfifo"):  # not on Windows
    VIDEO["a pipe"] = (
        lambda m, s, d: os.mkfifo(d.parent / "a.mp4") or tfkit.read_video(d.parent / "a.mp4"),
        r"a\.mp4' is neither a file nor a folder; expected a video",
    )
    VIDEO["a pipe among images"] = (
        lambda m, s, d: os.mkfifo(d.parent / "a.png") or tfkit.read_video(d.parent),
        r"a\.png' cannot be read as an image: it is a pipe",
    )
MISSING = {
    "read nothing": (lambda m, s, d: tfkit.read_video("no.mp4"), r"'no\.mp4' does not exist"),
    "load nothing": (
        lambda m, s, d: tfkit.load("/no/model"),
        r"no model '/no/model': expected 'men",
    ),
    "load a name": (
        lambda m, s, d: tfkit.load("who/what"),
        r"no model 'who/what': there is no such",
    ),
    "load a folder": (lambda m, s, d: tfkit.load(d), r"has no folder 'unet'; expected Stable Diff"),
    "open": (lambda m, s, d: tfkit.open_trajectory("no"), r"no holds no trajectory \(trajectory\."),
}
MISTAKES = INVERT | EDIT | SETTINGS | TOKENS | MODEL | FILM | VIDEO | FILES


@pytest.fixture(scope="module")
def have(pipeline_folder):
    model = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float32)
    return SimpleNamespace(
        model=model, source=tfkit.invert(model, X, "a cat", steps=2, progress=False)
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", MISTAKES | MISSING)
def test_a_mistake_is_answered(have, name, tmp_path, capfd):
    call, message = (MISTAKES | MISSING)[name]
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises((ValueError, OSError)) as caught:
        call(have.model, have.source, folder)
    answer = str(caught.value)
    assert caught.type is (FileNotFoundError if name in MISSING else ValueError), answer
    assert re.search(message, answer), f"{answer!r} does not match {message!r}"
    assert 20 < len(answer) < 2000
    assert capfd.readouterr() == ("", "") and not list(folder.iterdir())


def test_no_two_mistakes_share_a_name():
    parts = (INVERT, EDIT, SETTINGS, TOKENS, MODEL, FILM, VIDEO, FILES, MISSING)
    assert len(MISTAKES | MISSING) == sum(map(len, parts)) >= 100
