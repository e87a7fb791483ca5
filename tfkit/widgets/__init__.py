"""Interactive views for notebooks. Nothing imports them; they need the extra ``notebooks``."""

from tfkit.widgets.composer import CaptionComposer
from tfkit.widgets.explorer import CorrespondenceExplorer
from tfkit.widgets.flipbook import Flipbook

__all__ = ["CaptionComposer", "CorrespondenceExplorer", "Flipbook"]
