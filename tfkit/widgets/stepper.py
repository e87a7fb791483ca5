"""Walk through an edit: step, back, play, other keyframes, another prompt, branches side by side.

The sessions are the truth, and the traits say what they are at: setting ``position``, ``prompt``,
``guidance``, ``seed`` or ``active`` does what the page's controls do. The kernel takes one step for
each message of the page, so that a stop arrives between two of them: nothing is left half done.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anywidget
import traitlets
from jaxtyping import Float
from torch import Tensor

from tfkit.plots import Sheet
from tfkit.session import EditSession
from tfkit.settings import check_whole
from tfkit.tokens import layer_table
from tfkit.video import size_of
from tfkit.widgets import page, traits
from tfkit.widgets.branches import SETTINGS, Branches
from tfkit.widgets.counting import step_each
from tfkit.widgets.kernel import obey, where_cells_run
from tfkit.widgets.stops import Stops, describe
from tfkit.widgets.twin import Twin

TOLD = ("_state", "branches", "active", "position", "playing", "progress", "message")
PLACES = 1024  # tokens of the layer that fields are shown of at first, at most


class EditStepper(Twin, anywidget.AnyWidget):
    """The controls of an `EditSession`, its keyframes, and the clean frames that steps head for.

    session: becomes branch "A"; it is stepped itself, call ``refresh()`` after stepping it
    elsewhere. active: the branch that controls are for; together: steps are taken by all branches.
    position: steps taken; setting it goes there. prompt, negative_prompt, guidance: from here on.
    seed: of keyframes redrawn from here on; None while they are the session's own. probe:
    [frame, x, y] in pixels, or []: whose blend weights are shown, and, with ``fields``, where the
    field of ``layer`` finds it in the keyframes. playing: views ask for one step after another.
    progress: UNet passes [done, expected] of the step under way. message: what went wrong.
    Raises ValueError or NonFiniteError for what the session refuses, traitlets.TraitError for a
    trait's value that is not there; sessions and traits then stay as they were.
    """

    _esm = page.source("tokens.js", "page.js", "view.js", "stepper.js")
    _css = page.source("view.css", "stepper.css")
    branches = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    active = traitlets.Unicode().tag(sync=True)
    position = traitlets.Int().tag(sync=True)
    prompt = traitlets.Unicode().tag(sync=True)
    negative_prompt = traitlets.Unicode().tag(sync=True)
    guidance = traitlets.Float().tag(sync=True)
    seed = traitlets.Int(None, allow_none=True).tag(sync=True)
    layer = traitlets.Unicode().tag(sync=True)
    probe: "traitlets.List[Any]" = traitlets.List().tag(sync=True, echo_update=False)
    fields = traitlets.Bool(True).tag(sync=True)
    together = traitlets.Bool(False).tag(sync=True)
    playing = traitlets.Bool(False).tag(sync=True)
    progress: "traitlets.List[Any]" = traitlets.List(read_only=True).tag(sync=True)
    message = traitlets.Unicode(read_only=True).tag(sync=True)
    _data = traitlets.Dict().tag(sync=True)
    _state = traitlets.Dict().tag(sync=True)

    def __init__(self, session: EditSession):
        if not isinstance(session, EditSession):
            raise ValueError(
                f"session is a {type(session).__name__}; expected a tfkit.EditSession, which takes "
                "a model, a trajectory and a prompt"
            )
        model, source = session.model, session.source
        h, w = size_of(source.clean)
        whole = h * model.factor, w * model.factor
        self._branches, self._stops = Branches(session), Stops()
        self._grids = {x.name: x.size for x in layer_table(model, whole)}
        self.size, sizes = source.size or whole, {n: h * w for n, (h, w) in self._grids.items()}
        fits = [name for name, places in sizes.items() if places <= PLACES] or list(sizes)
        finest = max(fits, key=lambda name: (sizes[name], list(sizes).index(name)))
        layers = [{"name": name, "grid": grid} for name, grid in self._grids.items()]
        data = {"size": self.size, "frames": len(source), "layers": layers}
        self._following: int | None = threading.get_ident()
        super().__init__(_data=data, layer=finest)
        self._follow("A")
        self.on_msg(self._asked)

    # What is there

    @property
    def session(self) -> EditSession:
        """The active branch's."""
        return self._branches[self.active]

    @property
    def sessions(self) -> dict[str, EditSession]:
        """Those of all branches, by name."""
        return dict(self._branches)

    def frames(self) -> Float[Tensor, "f 3 h w"]:
        """What is shown of the active branch: predicted clean frames, at first the source's."""
        return self._stops.of(self.session).frames()

    def matches(self) -> Float[Tensor, "k 3"]:
        """Where the probe is in each keyframe of the step: x, y in pixels, and the similarity.

        Raises ValueError without a probe, and where there are no keyframes.
        """
        if not self.probe:
            raise ValueError("there is no probe; set it to [frame, x, y] first")
        stop, grid = self._stops.of(self.session), self._grids[self.layer]
        return stop.matches(self.layer, grid, self.size, self.probe)

    # What can be done

    def step(self, count: int = 1) -> "EditStepper":
        """Steps of the active branch, of all where ``together``. Returns itself."""
        check_whole("count", count, least=0)
        with self._settling():
            for _ in range(count):
                self._step(self._moving())
        return self

    def back(self, count: int = 1) -> "EditStepper":
        """Back, for nothing; all branches where ``together``. Returns itself."""
        with self._settling():
            for session in self._moving():
                session.back(count)
        return self

    def change(self, **settings: Any) -> "EditStepper":
        """As the session's own, but keyframes stay unless they are given or redrawn."""
        with self._settling():
            self._branches.change(self.active, settings)
        return self

    def redraw(self, seed: int) -> "EditStepper":
        """Other keyframes from here on. Returns itself."""
        return self.change(seed=seed)

    def branch(self, name: str | None = None) -> "EditStepper":
        """Another branch, which stands where the active one does, and is active now."""
        self._follow(self._branches.fork(self.active, name))
        return self

    def drop(self, name: str) -> "EditStepper":
        """Forgets a branch; one stays. Returns itself."""
        self._branches.drop(name)
        self._follow(self.active if name != self.active else next(iter(self._branches)))
        return self

    def refresh(self) -> "EditStepper":
        """Traits and views follow the sessions, wherever these were stepped. Returns itself."""
        self._follow(self.active)
        return self

    # Sessions and traits

    @traitlets.observe("active", "position", "seed", "playing", *SETTINGS)
    def _set(self, change: traitlets.Bunch) -> None:
        """A trait was set, from the page or from Python."""
        if self._following != threading.get_ident():
            where_cells_run(partial(self._go, change["name"], change["new"]))

    def _go(self, name: str, value: Any) -> None:
        """The session goes where a trait says, or the trait goes back."""
        with self._settling():
            if name == "position":
                ahead = value - self.session.position
                self.session.back(max(-ahead, 0))
                for _ in range(ahead):
                    self._step([self.session])
            elif name == "seed" or name in SETTINGS:
                self.change(**{name: value})

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """However the block is left, nothing is under way and the traits are as the sessions."""
        try:
            yield
        finally:
            self.set_trait("progress", [])
            self._follow(self.active)

    def _follow(self, active: str) -> None:
        session, self._following = self._branches[active], threading.get_ident()
        try:
            state = {n: describe(s, self._stops.path(s)) for n, s in self._branches.items()}
            self._stops.forget_all_but({n for known in state.values() for n in known["path"]})
            with self.hold_sync():
                self._state = state
                self.set_trait("branches", list(state))
                self.active, self.position = active, session.position
                self.seed = self._branches.seeds[active]
                for name in SETTINGS:
                    setattr(self, name, getattr(session.plan, name))
                if all(s.position == len(s.timesteps) for s in self._moving()):
                    self.playing = False
        finally:
            self._following = None

    def _moving(self) -> list[EditSession]:
        """The sessions that a step is for."""
        return list(self._branches.values()) if self.together else [self.session]

    def _step(self, sessions: list[EditSession]) -> None:
        """One step of each, telling how far it is."""
        step_each(sessions, partial(self.set_trait, "progress"))

    # The page

    def _asked(self, widget: object, content: dict[str, Any], buffers: object) -> None:
        """What the page asks for."""
        where_cells_run(partial(self._do, content))

    def _do(self, content: dict) -> None:
        """Does it; an error is said in ``message`` and stops the playing."""
        act: dict[str, Callable] = {
            "step": self._step_from, "back": self.back, "change": self.change,
            "branch": self.branch, "drop": self.drop,
        }  # fmt: skip
        look: dict[str, Callable] = {
            "picture": self._send_picture, "field": self._send_field, "tell": self._tell,
        }  # fmt: skip
        try:
            wrong = obey(act | look, content)
            if wrong:
                self.playing = False
            if wrong or content["do"] in act:
                self.set_trait("message", wrong)
        finally:
            self.send({"done": content.get("number")})

    def _step_from(self, positions: dict) -> None:
        """Steps of branches that are still where the page saw them; of two views, one is late."""
        still = [n for n, s in self._branches.items() if positions.get(n) == s.position]
        with self._settling():
            self._step([self._branches[name] for name in still])

    def _tell(self) -> None:
        """How it stands, for a page that has waited long: a message may have been lost."""
        self.send_state([*TOLD])

    def _send_picture(self, stop: int) -> None:
        at = self._stops.get(stop)
        if at:  # or it was forgotten meanwhile
            self.send({"picture": stop, **at.detail()}, buffers=at.pictures())

    def _send_field(self, stop: int, layer: str) -> None:
        at = self._stops.get(stop)
        if at:
            arrows = [part.tobytes() for part in at.field(layer)]
            self.send({"field": stop, "layer": layer}, buffers=arrows)

    # Values that are none

    @traitlets.validate("active", "layer")
    def _there(self, proposal: traitlets.Bunch) -> str:
        is_branch = proposal["trait"].name == "active"
        return traits.known(proposal, list(self._branches if is_branch else self._grids))

    @traitlets.validate("position")
    def _possible(self, proposal: traitlets.Bunch) -> int:
        value, steps = proposal["value"], len(self.session.timesteps)
        if not 0 <= value <= steps:
            raise traitlets.TraitError(f"position={value}: expected 0 to {steps} steps")
        return value

    @traitlets.validate("probe")
    def _one_point(self, proposal: traitlets.Bunch) -> list:
        value, frames = proposal["value"], self._data["frames"]
        return value and traits.point("probe", value, frames, self.size, instead="[] or ")

    # Readers without a kernel

    def figure(self) -> Sheet:
        """What is shown of each branch, its keyframes framed."""
        return self._stops.figure(self._branches)

    def __repr__(self) -> str:
        at = [f"{n} at {s.position} of {len(s.timesteps)}" for n, s in self._branches.items()]
        return f"EditStepper({self._data['frames']} frames, branches {', '.join(at)})"
