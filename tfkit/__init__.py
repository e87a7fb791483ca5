"""tfkit: diffusion features of video, to look at, measure and edit with (TokenFlow, ICLR 2024)."""

from typing import Any

from tfkit import menagerie
from tfkit.adapters import from_pipeline, load_embedding, load_lora
from tfkit.advice import examine, preflight
from tfkit.conditions import canny
from tfkit.control import ControlNet
from tfkit.correspondence import Field, nearest_neighbors
from tfkit.diffusion import LatentDiffusion
from tfkit.editing import Edit, edit
from tfkit.evaluation import evaluate
from tfkit.inversion import invert, reconstruct
from tfkit.loading import load
from tfkit.methods import Plain, PlugAndPlay, SDEdit
from tfkit.overflow import NonFiniteError
from tfkit.pca import TokenPCA
from tfkit.preparation import Preparation
from tfkit.propagation import ExtendedAttention, FirstFrame, PerFrame, TokenFlow
from tfkit.sampling import generate
from tfkit.session import EditSession
from tfkit.tokens import extract_tokens
from tfkit.trajectory import Trajectory, open_trajectory
from tfkit.video import Clip
from tfkit.video_file import VideoFile, open_video, read_video
from tfkit.writing import write_video

__version__ = "0.1.0"

__all__ = [
    "Clip", "ControlNet", "Edit", "EditSession", "ExtendedAttention", "Field", "FirstFrame",
    "LatentDiffusion", "NonFiniteError", "PerFrame", "Plain", "PlugAndPlay", "Preparation",
    "SDEdit", "TokenFlow", "TokenPCA", "Trajectory", "VideoFile", "canny", "edit", "evaluate",
    "examine", "extract_tokens", "from_pipeline", "generate", "invert", "load",
    "load_embedding", "load_lora", "menagerie", "nearest_neighbors", "open_trajectory",
    "open_video", "preflight", "read_video", "reconstruct", "write_video",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`PreferenceStudy` is a widget: it is imported when it is asked for, and only then."""
    if name != "PreferenceStudy":
        hint = ""
        if name.endswith(("Explorer", "Stepper", "Composer", "Compare", "Flipbook")):
            hint = "; the views for notebooks are in tfkit.widgets"
        raise AttributeError(f"module 'tfkit' has no attribute {name!r}{hint}")
    try:
        from tfkit.widgets import PreferenceStudy
    except ImportError as error:
        raise ImportError(
            f"tfkit.PreferenceStudy is a widget and needs {error.name}: "
            'pip install "tfkit[notebooks]"'
        ) from error
    return PreferenceStudy
