"""Interactive views for notebooks. Nothing imports them; they need the extra ``notebooks``."""

from tfkit.widgets.composer import CaptionComposer

__all__ = ["CaptionComposer"]
