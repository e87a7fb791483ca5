"""Edits that survive a kill: every step in a folder, as a file that is whole or not there.

A folder holds `edit.json` (what the edit is computed from) and one `step0001.safetensors` for each
step taken, of latents and predicted noise. At most the step that was being taken is lost.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from tfkit.files import claimed, load_tensors, save_tensors
from tfkit.session import EditSession
from tfkit.trajectory import digest


def run_in(folder: str | Path, session: EditSession, *, progress: bool = True) -> EditSession:
    """Runs a session to its end, from the last step that the folder holds. Returns the session.

    Raises ValueError for a folder that belongs to another edit, is in use or damaged, OSError where
    it cannot be written; what was computed before stays there.
    """
    steps = len(session.timesteps)
    with (
        claimed(folder, "edit", origin(session)) as place,
        tqdm(total=steps, initial=session.position, desc="edit", disable=not progress) as bar,
    ):
        while session.position < steps:
            file = place / f"step{session.position + 1:04d}.safetensors"
            if file.exists():
                session.restore(**_read(file))
            else:
                session.step()
                save_tensors(file, {"latents": session.latents, "noise": session.noise})
            bar.update()
    return session


def origin(session: EditSession) -> dict[str, Any]:
    """What an edit is computed from; two with the same origin are the same."""
    plan, source, model = session.plan, session.source, session.model
    rows = [None if row is None else row.tolist() for row in session.keyframes]
    return {
        "video": f"{digest(source.clean)} {digest(session.latents)}",
        "model": model.fingerprint(),
        "dtype": str(model.dtype),
        "source prompt": source.prompt,
        "prompt": plan.prompt,
        "negative prompt": plan.negative_prompt,
        "guidance": float(plan.guidance),
        "method": repr(plan.method),
        "propagation": repr(plan.propagation),
        "timesteps": list(session.timesteps),
        "keyframes": rows,
    }


def _read(file: Path) -> dict[str, Tensor]:
    try:
        values = load_tensors(file)
        return {name: values[name] for name in ("latents", "noise")}
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{error}; delete it and edit again with the same folder: the steps before are kept"
        ) from None
