"""The static twin: what readers without a kernel, as on GitHub, see in a widget's place."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any

from tfkit.plots import Sheet

VIEW = "application/vnd.jupyter.widget-view+json"


class Twin:
    """Puts a picture of a widget beside its view, under ipywidgets 7 (Colab's) as under 8.

    Stands before the widget's class among the bases. The picture is of :meth:`figure`, or what
    `_twin` gives instead.
    """

    figure: Callable[[], Sheet]
    _ipython_display_ = None  # by this ipywidgets 7 shows a view, and nothing beside it

    def _twin(self) -> bytes:
        """A PNG of what the widget shows now."""
        return self.figure()._repr_png_()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and for readers without a kernel its twin."""
        above = getattr(super(), "_repr_mimebundle_", None)
        bundle = above(**options) if above else _view(self)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["image/png"] = b64encode(self._twin()).decode()
        return bundle


def _view(widget: Any) -> dict[str, Any]:
    """What ipywidgets 8 gives of a widget, for 7, which has no such method."""
    model = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": repr(widget), VIEW: model}
