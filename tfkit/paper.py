"""The paper's Tables 1 to 3, as published, and a table of ours beside them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfkit.evaluation import need_pandas, summary

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Published:
    """A row of the paper's Tables 1 to 3, where it has the figure.

    clip: CLIP similarity of frames and prompt; warp: warp error x 10^3; psnr: of a reconstruction
    in dB; seconds: 40 frames of 512 x 512 in 50 steps on the authors' GPU. They are other videos,
    another model and another CLIP than ours: what can be compared is the order, and ratios.
    """

    clip: float | None = None
    warp: float | None = None
    psnr: float | None = None
    seconds: float | int | None = None


PAPER = {
    "LDM reconstruction": Published(0.23, 2.0, 31.1),
    "DDIM inversion": Published(psnr=25.3),
    "PnP, per frame": Published(0.33, 11.3),
    "Text2Video-Zero": Published(0.33, 12.5),
    "Tune-A-Video": Published(0.31, 30.0),
    "FateZero": Published(0.32, 6.9),
    "Rerender": Published(0.32, 1.8),
    "joint attention": Published(0.33, 5.9),
    "fixed keyframes": Published(0.33, 3.7),
    "TokenFlow": Published(0.33, 3.0, 25.7, 237),
}
_SAME = {  # the paper's rows, and ours that correspond to them
    "PnP, per frame": "PnP, per frame", "joint attention": "PnP, joint attention",
    "fixed keyframes": "PnP, fixed keyframes", "TokenFlow": "PnP, TokenFlow",
}  # fmt: skip


def beside_the_paper(table: "pandas.DataFrame") -> "pandas.DataFrame":
    """The paper's rows with our own beside them: each measured, and over its own per frame.

    Methods of others that it compares with have no row of ours. ValueError for a table without the
    warp error of frames edited alone, which all is compared with.
    """
    pandas = need_pandas("tfkit.paper")
    ours, base = summary(table[table.metric != "psnr"]).rows, "PnP, per frame"
    if "warp_error" not in ours.get(base, {}):
        raise ValueError(f"no warp error of {base!r} in the table; expected it among its methods")
    rows, paper_base = {}, PAPER[base].warp
    for name, paper in PAPER.items():
        if paper.warp is None or paper_base is None or name == "LDM reconstruction":
            continue
        own = ours.get(_SAME.get(name, ""), {})
        warp, text = own.get("warp_error"), own.get("text_alignment")
        share = warp and float(warp) / float(ours[base]["warp_error"])
        rows[name] = {
            ("warp error ×10³", "tfkit"): warp.text() if warp else "–",
            ("warp error ×10³", "paper"): f"{paper.warp:.1f}",
            ("over per frame", "tfkit"): f"{share:.2f}" if share else "–",
            ("over per frame", "paper"): f"{paper.warp / paper_base:.2f}",
            ("CLIP-T", "tfkit"): text.text() if text else "–",
            ("CLIP-T", "paper"): f"{paper.clip:.2f}",
        }
    return pandas.DataFrame.from_dict(rows, orient="index")
