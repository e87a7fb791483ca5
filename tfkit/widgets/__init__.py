"""Interactive views for notebooks. Nothing imports them; they need the extra ``notebooks``."""

from tfkit.widgets.compare import VideoCompare
from tfkit.widgets.components import PCAExplorer
from tfkit.widgets.composer import CaptionComposer
from tfkit.widgets.explorer import CorrespondenceExplorer
from tfkit.widgets.flipbook import Flipbook
from tfkit.widgets.stepper import EditStepper
from tfkit.widgets.study import PreferenceStudy

__all__ = [
    "CaptionComposer",
    "CorrespondenceExplorer",
    "EditStepper",
    "Flipbook",
    "PCAExplorer",
    "PreferenceStudy",
    "VideoCompare",
]
