"""Pictures under sliders: what was computed beforehand, looked up by one slider for each axis.

The trait ``key`` is the truth: sliders and picture follow it, and it can be set from Python.
Memory: one PNG, or one looping GIF, for each picture.
"""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as widgets
import traitlets
from torch import Tensor

from tfkit import codec
from tfkit.video import resize, to_uint8
from tfkit.widgets.picture import Picture
from tfkit.widgets.twin import Twin

ZOOM = 384  # pixels of the shown pictures' shorter side


class Flipbook(Twin, widgets.VBox):
    """Pictures (3, h, w), or films (f, 3, h, w), by key; one slider for each axis of the keys.

    pictures: {key: picture} with keys that are tuples as long as ``axes`` (or single values where
    there is one axis); every combination is there. axes: the sliders' names. fps: of the films.
    Raises ValueError for keys that do not fit, traitlets.TraitError for a key that is not there.
    """

    key = traitlets.Tuple()

    def __init__(
        self,
        pictures: Mapping[Any, Tensor],
        axes: Sequence[str],
        *,
        fps: float | int = 5,
        size: int = ZOOM,
    ):
        pages = {k if isinstance(k, tuple) else (k,): v for k, v in pictures.items()}
        if not pages or any(len(key) != len(axes) for key in pages):
            raise ValueError(f"keys {list(pictures)[:3]} ...: expected one value of {list(axes)}")
        values = [list(dict.fromkeys(key[i] for key in pages)) for i in range(len(axes))]
        count = 1
        for choices in values:
            count *= len(choices)
        if count != len(pages):
            raise ValueError(f"{len(pages)} pictures for {count} combinations; expected every one")
        films = {
            key: picture[None] if picture.ndim == 3 else picture for key, picture in pages.items()
        }
        self._films = any(len(frames) > 1 for frames in films.values())
        self._pages = {key: _encoded(frames, size, fps) for key, frames in films.items()}
        self._stills = {key: frames[:1] for key, frames in films.items()}
        self._size = size
        self._axes = tuple(axes)
        self._image = Picture(format="gif" if self._films else "png")
        self._image.layout.align_self = "flex-start"  # a column stretches what is in it
        self._sliders = tuple(
            widgets.SelectionSlider(
                options=[(str(v), v) for v in choices], description=name, continuous_update=True
            )
            for name, choices in zip(axes, values, strict=True)
        )
        super().__init__((*self._sliders, self._image))
        for i, slider in enumerate(self._sliders):
            slider.observe(partial(self._moved, i), "value")
        self.observe(self._show, "key")
        self.key = tuple(choices[0] for choices in values)

    @traitlets.validate("key")
    def _there(self, proposal: traitlets.Bunch) -> tuple:
        key = tuple(proposal["value"])
        if key not in self._pages:
            raise traitlets.TraitError(f"key={key!r}: expected one of {list(self._pages)}")
        return key

    def _moved(self, axis: int, change: traitlets.Bunch) -> None:
        if self.key and self.key[axis] != change["new"]:
            self.key = (*self.key[:axis], change["new"], *self.key[axis + 1 :])

    def _show(self, change: traitlets.Bunch | None = None) -> None:
        """Sliders and picture follow the key."""
        for slider, value in zip(self._sliders, self.key, strict=True):
            slider.value = value
        self._image.value = self._pages[self.key]
        named = zip(self._axes, self.key, strict=True)
        # ipywidgets' pictures have no alt
        self._image.tooltip = ", ".join(f"{name} {value}" for name, value in named)

    def _twin(self) -> bytes:
        return _encoded(self._stills[self.key], self._size, 1)


def _encoded(frames: Tensor, size: int, fps: float | int) -> bytes:
    """A PNG of one frame, a looping GIF of several, enlarged by a whole number."""
    zoom = max(1, round(size / min(frames.shape[-2:])))
    h, w = (side * zoom for side in frames.shape[-2:])
    pixels, memory = [*to_uint8(resize(frames.float(), (h, w)))], io.BytesIO()
    if len(pixels) == 1:
        return codec.encoded(pixels[0], "PNG")
    codec.write_gif(memory, pixels, fps)
    return memory.getvalue()
