"""The training loop every stage shares: optimizer, moving average, clock, a state that resumes."""

import copy
import json
import math
import time
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tfkit.atomic import replacing


def spent(path: Path) -> dict:
    """What a state took so far: minutes, steps, samples, device, and the figures reported last."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["spent"])


class Run:
    """One stage's training. What it took so far stands in training.json beside the weights."""

    def __init__(self, name, model, args, rate, warmup=100, ema=0.999):
        self.name, self.model, self.args = name, model, args
        self.rate, self.warmup, self.decay = rate, warmup, ema
        trained = [p for p in model.parameters() if p.requires_grad]
        fused = args.device.startswith("cuda")
        self.optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.01, fused=fused)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.step, self.seconds, self.samples, self.devices = 0, 0.0, 0, self._device()
        self.path, self.ledger = args.work / f"{name}.safetensors", args.out / "training.json"
        if args.resume and self.path.exists():
            self._load()
        elif args.resume and (args.out / name).exists():  # another machine's weights, no state
            weights = type(model).from_pretrained(args.out / name).float().state_dict()
            for part in (self.model, self.average):
                part.load_state_dict(weights)
            self._count(self._read_ledger().get(name, {}))

    def _count(self, spent: dict):
        self.step, self.samples = spent.get("steps", 0), spent.get("samples", 0)
        self.seconds = 60 * spent.get("minutes", 0.0)
        before = spent.get("device", "").split(", ")
        self.devices = ", ".join(dict.fromkeys([*filter(None, before), self._device()]))

    def _read_ledger(self) -> dict:
        return json.loads(self.ledger.read_text()) if self.ledger.exists() else {}

    def _load(self):
        state, meta = load_file(self.path), spent(self.path)
        for prefix, model in (("model.", self.model), ("ema.", self.average)):
            model.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        for i, p in enumerate(self.model.parameters()):
            if f"m.{i}" in state and p.requires_grad:
                self.optimizer.state[p] = {
                    "step": torch.tensor(float(meta["steps"]), device=p.device),
                    "exp_avg": state[f"m.{i}"].to(p),
                    "exp_avg_sq": state[f"v.{i}"].to(p),
                }
        self._count(meta)

    def save(self, **figures):
        """Writes the state so that a kill at any moment leaves the last one whole."""
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"ema.{k}": v for k, v in self.average.state_dict().items()}
        for i, p in enumerate(self.model.parameters()):
            if p in self.optimizer.state:
                state[f"m.{i}"] = self.optimizer.state[p]["exp_avg"]
                state[f"v.{i}"] = self.optimizer.state[p]["exp_avg_sq"]
        state = {k: v.detach().clone().contiguous() for k, v in state.items()}
        taken = {
            "minutes": self.seconds / 60, "steps": self.step, "samples": self.samples,
            "device": self.devices, **figures,
        }  # fmt: skip
        with replacing(self.path) as part:
            save_file(state, part, {"spent": json.dumps(taken)})
        with replacing(self.ledger) as part:
            part.write_text(json.dumps(self._read_ledger() | {self.name: taken}, indent=2))

    def _device(self) -> str:
        if self.args.device.startswith("cuda"):
            return torch.cuda.get_device_name()
        return f"{torch.get_num_threads()} CPU threads"

    def train(self, minutes: float, loss_of, report, export, every: float = 5.0):
        """Minimises ``loss_of()`` for ``minutes``; the rate warms up, and falls along a cosine.

        The clock starts with the second step: on a GPU the first compiles, for minutes. Stopped by
        a signal, it leaves the state and the weights of that moment.
        loss_of: () -> (loss, samples seen). report: average model -> figures. export: writes the
        average model; both are called every ``every`` minutes and at the end.
        """
        losses: list[Tensor] = []
        before, first = self.seconds, self.step
        start = shown = time.time()

        def told():
            self.seconds = before + time.time() - start
            self._tell(losses, report, export)
            losses.clear()

        try:
            while (passed := time.time() - start) < 60 * minutes:
                losses.append(self._step(loss_of, passed / (60 * minutes), self.step - first + 1))
                if self.step == first + 1:
                    start = shown = time.time()
                elif time.time() - shown > 60 * every:
                    told()
                    shown = time.time()  # a report may take minutes itself
        except KeyboardInterrupt:
            told()
            raise
        if losses or self.step == first:  # else the last report was of the last step
            told()

    def _step(self, loss_of, share: float, count: int) -> Tensor:
        """The loss of the ``count``-th step of this run, of whose time ``share`` has passed."""
        rate = self.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, count / self.warmup)
        cuda = self.args.device.startswith("cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            loss, samples = loss_of()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step, self.samples = self.step + 1, self.samples + samples
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                [*self.average.parameters()], [*self.model.parameters()], 1 - decay
            )
        return loss.detach()

    def _tell(self, losses, report, export):
        figures = report(self.average)
        self.save(**figures)
        export(self.average)
        mean = torch.stack(losses).mean().item() if losses else math.nan
        text = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
        spent = f"step {self.step}  {self.seconds / 60:.1f} min"
        print(f"{self.name}  {spent}  loss {mean:.4f}  {text}", flush=True)


def save_grid(images: Tensor, path: Path, columns: int = 8):
    """Writes images (n, 3, h, w) as one picture."""
    from PIL import Image

    images = images[: len(images) // columns * columns].float().clamp(0, 1).cpu()
    sheet = rearrange(images, "(r c) k h w -> (r h) (c w) k", c=columns)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(path)
