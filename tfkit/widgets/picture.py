"""A picture among the widgets of ipywidgets."""

import ipywidgets as widgets
import traitlets


class Picture(widgets.Image):
    """ipywidgets' Image, able to have a tooltip: beside one its page reads a description, which
    Image itself has not, and shows an error in the picture's place."""

    description = traitlets.Unicode("").tag(sync=True)
