"""Compose a caption of the menagerie, see it filmed and see what the model makes of it.

The traits ``caption`` and ``seed`` are the truth: menus and pictures follow them, and setting them
from Python does what the menus do. A film is made at once, a picture by the model when asked for.
"""

import io
from collections.abc import Callable
from functools import partial
from html import escape

import ipywidgets as widgets
import traitlets
from torch import Tensor

from tfkit import codec
from tfkit.diffusion import LatentDiffusion
from tfkit.menagerie import vocabulary, world
from tfkit.sampling import generate
from tfkit.video import resize, to_uint8
from tfkit.widgets.kernel import where_cells_run
from tfkit.widgets.picture import Picture
from tfkit.widgets.twin import Twin

OPEN = "(open)"  # what a menu says of what the caption does not
MENUS = {
    "number": ("one", "two", "three"),
    "coat": vocabulary.COATS,
    "color": vocabulary.COLORS,
    "species": vocabulary.SPECIES,
    "accessory": vocabulary.ACCESSORIES,
    "ground": vocabulary.GROUNDS,
}
ZOOM = 256  # pixels that pictures are shown with


class CaptionComposer(Twin, widgets.VBox):
    """Menus for every attribute, a text field for any caption, a film and a sampled picture.

    model: makes the pictures of ``generate()``; without one there are films only. caption, seed:
    where to begin. frames: of a film. Raises traitlets.TraitError for a caption that the menagerie
    does not understand, with the words it knows; the last good one stays.
    """

    caption = traitlets.Unicode("a striped dog on snow")
    seed = traitlets.Int(0, min=0)

    def __init__(
        self,
        model: LatentDiffusion | None = None,
        *,
        caption: str = "a striped dog on snow",
        seed: int = 0,
        frames: int = 16,
    ):
        self._model, self._frames, self._still = model, frames, b""
        self._menus = {
            name: widgets.Dropdown(
                options=words if name == "number" else (OPEN, *words), description=name
            )
            for name, words in MENUS.items()
        }
        self._text = widgets.Text(description="caption", continuous_update=False)
        self._seeds = widgets.BoundedIntText(description="seed", min=0, max=2**31 - 1)
        self._message = widgets.HTML()  # wraps, where a Label would push the menus away
        self._film, self._picture = (Picture(width=ZOOM, height=ZOOM) for _ in range(2))
        self._film.format, self._picture.layout.display = "gif", "none"
        self._button = widgets.Button(description="Generate", disabled=model is None)
        self._button.tooltip = "Let the model paint this caption" if model else "No model was given"
        menus = widgets.VBox(tuple(self._menus.values()))
        fields = widgets.VBox((self._text, self._seeds, self._button))
        pictures = widgets.HBox((self._film, self._picture))
        super().__init__((widgets.HBox((menus, fields)), self._message, pictures))
        for menu in self._menus.values():
            menu.observe(self._chosen, "value")
        self._text.observe(self._typed, "value")
        widgets.link((self, "seed"), (self._seeds, "value"))
        self._button.on_click(lambda button: where_cells_run(self._pressed))
        self.seed, self.caption = seed, caption
        self.observe(self._show, ["caption", "seed"])
        self._show()

    @traitlets.validate("caption")
    def _understood(self, proposal: traitlets.Bunch) -> str:
        try:
            vocabulary.parse(proposal["value"])
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None
        return proposal["value"]

    def _typed(self, change: traitlets.Bunch) -> None:
        self._say(change["new"])

    def _say(self, caption: str) -> None:
        """The caption, set by a hand on the page: why it cannot be is said beside it."""
        try:
            self.caption = caption
        except traitlets.TraitError as error:
            self._message.value = escape(str(error))
        else:
            self._message.value = ""  # also where it is the one that was there before

    def _chosen(self, change: traitlets.Bunch) -> None:
        """A menu was set: the caption says what all of them say, and keeps its other animals."""
        said = {n: None if m.value == OPEN else m.value for n, m in self._menus.items()}
        ground, count = said.pop("ground"), MENUS["number"].index(said.pop("number")) + 1
        look = vocabulary.Look(**said)
        others = vocabulary.parse(self.caption).groups[1:]
        groups = ((look, count), *others)
        self._say(vocabulary.compose(vocabulary.Description(groups, ground)))
        self._set_menus()

    def _set_menus(self) -> None:
        """Menus say what the caption does of its first animals, and the ground."""
        description = vocabulary.parse(self.caption)
        look, count = description.groups[0]
        for name, menu in self._menus.items():
            value = description.ground if name == "ground" else getattr(look, name, None)
            with _unobserved(menu, self._chosen):
                menu.value = MENUS["number"][count - 1] if name == "number" else value or OPEN

    def _show(self, change: traitlets.Bunch | None = None) -> None:
        """Menus, text and film follow the caption and the seed."""
        self._set_menus()
        with _unobserved(self._text, self._typed):
            self._text.value = self.caption
        self._message.value, self._picture.layout.display = "", "none"
        clip = world.film(self.caption, frames=self._frames, seed=self.seed)
        pictures, film = [*to_uint8(resize(clip, ZOOM))], io.BytesIO()
        codec.write_gif(film, pictures, clip.fps)
        self._film.value, self._still = film.getvalue(), codec.encoded(pictures[0], "PNG")
        self._film.tooltip = f"Film of {self.caption}"  # ipywidgets' pictures have no alt

    def _pressed(self) -> None:
        """The button was: what goes wrong is said beside it."""
        try:
            self.generate()
        except Exception as error:  # memory, a driver: whatever it is, the page must say so
            self._message.value = escape(f"{type(error).__name__}: {error}")

    def generate(self) -> Tensor:
        """The model's own picture (3, h, w) of the caption, from noise of the seed; also shown."""
        if self._model is None:
            raise ValueError("this composer has no model; expected CaptionComposer(tfkit.load())")
        caption, seed = asked = self.caption, self.seed
        with _unobserved(self._text, self._typed):
            self._text.value = caption  # in place of words that were refused
        self._button.disabled, self._message.value = True, "painting, some seconds ..."
        try:
            made = generate(self._model, caption, guidance=4, seed=seed, progress=False)
            (pixels,) = to_uint8(resize(made, ZOOM))
            if (self.caption, self.seed) == asked:  # or it is no picture of what is shown now
                self._picture.value = codec.encoded(pixels, "PNG")
                self._picture.layout.display = ""
                self._picture.tooltip = f"The model's picture of {caption}"
        finally:
            self._button.disabled, self._message.value = False, ""
        return made[0]

    def _twin(self) -> bytes:
        return self._still  # its first frame


class _unobserved:
    """Sets a widget's value without being told of it."""

    def __init__(self, widget: widgets.Widget, handler: Callable):
        self.stop = partial(widget.unobserve, handler, "value")
        self.start = partial(widget.observe, handler, "value")

    def __enter__(self) -> None:
        self.stop()

    def __exit__(self, *error: object) -> None:
        self.start()
