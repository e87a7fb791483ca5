"""The command line: `python -m tfkit edit VIDEO PROMPT ...`, `demo`, `bench`, `tables`."""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

METHODS = ("pnp", "sdedit", "controlnet", "plain")
PROPAGATIONS = ("tokenflow", "joint", "per-frame")


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(prog="tfkit", description="Consistent video editing, explored.")
    commands = top.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="edit a clip of the menagerie, with and without")
    demo.add_argument("--output", type=Path, default=Path("figures"), help="folder (figures)")
    commands.add_parser("bench", help="how fast it is: ratios of timings in one run")
    every = commands.add_parser(
        "tables", help="the paper's tables on the benchmark (hours; goes on where it was stopped)"
    )
    every.add_argument("--folder", type=Path, default=Path("runs/tables"), help="of what is done")
    every.add_argument("--output", type=Path, help="CSV (beside the package, for notebook 11)")
    every.add_argument("--clips", type=int, default=24, help="of the benchmark's 24")
    every.add_argument("--frames", type=int, default=8, help="of each (8)")
    every.add_argument("--prompts", type=int, default=3, help="of each clip's three")
    every.add_argument("--steps", type=int, default=10, help="of inversion and edit (10)")
    every.add_argument("--workers", type=int, default=1, help="clips at once (1)")
    every.add_argument("--device", default="cpu", help="where the edits are made, in float32 (cpu)")
    every.add_argument(
        "--only", nargs="+", metavar="NAME",
        help="some of the methods, such as 'PnP, TokenFlow', and no reconstructions; not for "
        "notebook 11, which reads all: give an --output",
    )  # fmt: skip

    one = commands.add_parser("edit", help="edit a video", description="Edits a video to a prompt.")
    one.add_argument("video", help="mp4, GIF, or a folder of images")
    one.add_argument("prompt", help="what the edited video shows")
    one.add_argument("--output", type=Path, help="mp4, GIF or folder (VIDEO-edited.mp4, here)")
    one.add_argument("--model", default="menagerie", help="hub id or folder (menagerie)")
    one.add_argument("--frames", type=int, help="how many at most (all)")
    one.add_argument("--start", type=int, default=0, help="first frame (0)")
    one.add_argument("--size", type=int, help="shorter side in pixels (what the model knows)")
    one.add_argument("--steps", type=int, default=50, help="of inversion and edit (50)")
    one.add_argument(
        "--fixed-point", type=int, default=0, help="refinements of each inversion step (0)"
    )
    one.add_argument(
        "--prepare", action="store_true",
        help="read what TokenFlow needs of the video while inverting it by the extrapolated "
        "predictor: a fifth faster",
    )  # fmt: skip
    one.add_argument(
        "--budget", type=int, default=1024,
        help="MiB of what is read of the video to keep for edits to come, with --prepare or "
        "--trajectory (1024)",
    )  # fmt: skip
    one.add_argument("--source-prompt", default="", help="what the given video shows")
    one.add_argument("--negative-prompt", default="", help="what to keep away from")
    one.add_argument("--guidance", type=float, default=7.5, help="guidance scale (7.5)")
    one.add_argument("--method", choices=METHODS, default="pnp", help="image editing (pnp)")
    one.add_argument("--controlnet", default="menagerie", help="hub id or folder (menagerie)")
    one.add_argument("--propagation", choices=PROPAGATIONS, default="tokenflow")
    one.add_argument(
        "--interval", type=int,
        help="frames for each keyframe (8; of joint attention: to all frames, none a keyframe)",
    )  # fmt: skip
    one.add_argument(
        "--window", type=int, default=12, help="keyframes that each attends to at the most (12)"
    )
    one.add_argument("--trajectory", type=Path, help="folder to keep the inversion in, or resume")
    one.add_argument("--checkpoints", type=Path, help="folder to keep the edit in, or resume")
    one.add_argument("--seed", type=int, default=0, help="of the keyframes (0)")
    one.add_argument("--batch", type=int, default=8, help="frames in a pass (8)")
    one.add_argument("--device", help="cpu, cuda, ... (the GPU where there is one)")
    one.add_argument(
        "--check", action="store_true", help="say what it takes and what to mind, and stop"
    )
    one.add_argument("--quiet", action="store_true", help="no progress bars")
    return top


def run_edit(args: argparse.Namespace) -> None:
    """Reads, inverts, edits and writes one video."""
    import tfkit  # here, so that --help and mistyped options answer at once
    from tfkit import advice
    from tfkit.files import check_folder
    from tfkit.methods import Method
    from tfkit.protocols import Propagation
    from tfkit.settings import check_seed
    from tfkit.writing import check_output

    output = args.output or Path(f"{Path(args.video).stem}-edited.mp4")
    places = {"--trajectory": args.trajectory, "--checkpoints": args.checkpoints}
    _check_apart({"the video": args.video, "--output": check_output(output)} | places)
    _check_outside("--output", output, {"the video": args.video} | places)
    _check_outside("--checkpoints", args.checkpoints, {"--trajectory": args.trajectory})
    for name, kind in (("--trajectory", "trajectory"), ("--checkpoints", "edit")):
        if places[name] is not None:
            check_folder(places[name], kind)
    methods: dict[str, Callable[[], Method]] = {
        "pnp": tfkit.PlugAndPlay,
        "sdedit": tfkit.SDEdit,
        "controlnet": lambda: tfkit.ControlNet(model=args.controlnet),
        "plain": tfkit.Plain,
    }
    propagations: dict[str, Callable[[], Propagation]] = {
        "tokenflow": lambda: tfkit.TokenFlow(
            8 if args.interval is None else args.interval, window=args.window
        ),
        "joint": lambda: tfkit.ExtendedAttention(args.interval, window=args.window),
        "per-frame": tfkit.PerFrame,
    }
    method, propagation = methods[args.method](), propagations[args.propagation]()
    how: dict[str, Any] = {"fixed_point": args.fixed_point}
    if args.budget < 0:
        raise ValueError(f"--budget {args.budget}: expected MiB, 0 or more")
    # what is neither prepared nor kept in a folder no other edit would find
    budget = args.budget * 2**20 if args.prepare or args.trajectory else 0
    check_seed(args.seed)
    if args.prepare:
        how |= {
            "predictor": "extrapolated",
            "prepare": tfkit.Preparation(method, propagation, seed=args.seed, budget=budget),
        }
    start, progress = time.perf_counter(), not args.quiet
    model = tfkit.load(args.model, device=args.device)
    model.timesteps(args.steps)
    size = model.sample_size if args.size is None else args.size
    video = tfkit.open_video(args.video, frames=args.frames, start=args.start, size=size)
    settings = {
        "negative_prompt": args.negative_prompt, "guidance": args.guidance, "method": method,
        "propagation": propagation, "batch": args.batch,
    }  # fmt: skip
    report = tfkit.preflight(
        model, video, args.prompt, steps=args.steps, source_prompt=args.source_prompt,
        folder=args.trajectory is not None, fixed_point=args.fixed_point, prepare=args.prepare,
        budget=budget, progress=progress, **settings,
    )  # fmt: skip
    if args.check:
        return print(report)
    _say(report.notes)
    source = tfkit.invert(
        model, video, args.source_prompt, steps=args.steps, folder=args.trajectory,
        batch=args.batch, progress=progress, **how,
    )  # fmt: skip
    source.cache.budget = budget
    if args.method != "controlnet":  # whose reconstruction would be another
        quality = advice.reconstruction_psnr(model, source, batch=args.batch)
        _say(advice.quality_notes(quality, args.steps))
    session = tfkit.EditSession(model, source, args.prompt, seed=args.seed, **settings)
    session.run(folder=args.checkpoints, progress=progress)
    path = tfkit.write_video(output, session.stream(progress=progress), fps=video.fps)
    _say(advice.examine_session(session))
    f, _, h, w = video.shape
    seconds = time.perf_counter() - start
    print(f"wrote {path}: {f} frames of {w} x {h}, {seconds:.0f} s")


def _check_apart(paths: dict[str, str | Path | None]) -> None:
    """Raises ValueError where two of what is read and written lie at the same place."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        other = seen.setdefault(Path(path).expanduser().resolve(), name)
        if other != name:
            raise ValueError(f"{name} {str(path)!r} is {other} as well; expected another path")


def _check_outside(name: str, folder: Path | None, paths: dict[str, str | Path | None]) -> None:
    """Raises ValueError where something lies in a folder that is to hold one thing alone."""
    place = None if folder is None else folder.expanduser().resolve()
    for other, path in paths.items():
        if path is not None and place in Path(path).expanduser().resolve().parents:
            raise ValueError(
                f"{other} {str(path)!r} lies in {name} {str(folder)!r}, which is to hold nothing "
                "else; expected another path"
            )


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def run_tables(args: argparse.Namespace) -> None:
    """Measures the benchmark, writes the table and prints its summary."""
    import torch

    from tfkit import evaluation, readings, tables
    from tfkit.loading import load

    made_with = {name: getattr(args, name) for name in ("clips", "frames", "prompts", "steps")}
    load(device="cpu").timesteps(args.steps)  # says what is wrong with them before hours of work
    chosen: dict[str, Any] = {
        "model": functools.partial(load, device=args.device, dtype=torch.float32)
    }
    if args.only:
        named = tables.CONTENDERS | tables.FURTHER
        unknown = [name for name in args.only if name not in named]
        if unknown or args.output is None:
            raise ValueError(
                f"--only {', '.join(map(repr, args.only))}: expected an --output, and some of "
                + ", ".join(map(repr, named))
            )
        some = {name: named[name] for name in args.only}
        chosen |= {"contenders": some, "rebuilt": {}}
    table = tables.measure(**made_with, **chosen, folder=args.folder, n_jobs=args.workers)
    machine = readings.machine(args.device)
    path = readings.write_table(args.output or readings.STORED, table, machine=machine, **made_with)
    for part in (table[table.metric != "psnr"], table[table.metric == "psnr"]):
        if len(part):
            print(evaluation.summary(part))
    print(f"wrote {path}: {len(table)} numbers")


def main(argv: list[str] | None = None) -> int:
    """Runs a command. A user's mistake: one line on stderr and exit status 2."""
    args = parser().parse_args(argv)
    try:
        if args.command == "demo":
            from tfkit import demo

            demo.run(args.output)
        elif args.command == "bench":
            from tfkit import bench

            bench.run()
        elif args.command == "tables":
            run_tables(args)
        else:
            run_edit(args)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"tfkit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from tfkit.memory import is_out_of_memory, told

        if not is_out_of_memory(error):
            raise
        print(f"tfkit: error: {told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tfkit: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
