"""Stage 4, the ControlNet: edges of a frame say where things are, the caption what they are.

Conditions are Canny edges, white on black, as diffusers' ControlNetModel takes them. It begins as a
copy of the UNet's encoder (Zhang et al., ICCV 2023), and the UNet stays as it is.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from tfkit.menagerie import casting
from tfkit.menagerie.recipe.data import edges
from tfkit.menagerie.recipe.loop import Run, save_grid
from tfkit.menagerie.recipe.unet import Studio, prompts, sample


def from_unet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet on the UNet's encoder; three widths, as the VAE's factor of 4 has it."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))


def train(args):
    """Trains on top of the UNet in ``args.out``, which is frozen."""
    studio = Studio(args)
    unet = UNet2DConditionModel.from_pretrained(args.out / "unet").float().to(args.device)
    unet.requires_grad_(False).eval()
    model = from_unet(unet).to(args.device, memory_format=torch.channels_last)
    run = Run("controlnet", model, args, rate=args.rate or 3e-4, ema=0.998)

    found = edges(args.work, args.images).to(args.device)

    def condition(index: Tensor, mirrored: Tensor) -> Tensor:
        seen = found[index].float()
        seen = torch.where(mirrored[:, None, None, None] == 1, seen.flip(-1), seen)
        if args.size != casting.SIZE:
            seen = F.interpolate(seen, size=(args.size, args.size), mode="area")
        return seen.expand(-1, 3, -1, -1)

    def controlled(control, noisy, t, text, seen):
        down, mid = control(
            noisy, t, encoder_hidden_states=text, controlnet_cond=seen, return_dict=False
        )
        return unet(
            noisy, t, encoder_hidden_states=text,
            down_block_additional_residuals=down, mid_block_additional_residual=mid,
        ).sample  # fmt: skip

    def loss_of():
        batch = studio.batch()
        predict = partial(controlled, model, seen=condition(batch.index, batch.mirrored))
        return studio.loss(predict, batch), len(batch.index)

    def report(average):
        index = torch.arange(24, device=args.device)
        seen = condition(index, torch.zeros_like(index))
        both = torch.cat([seen, seen])

        predict = partial(controlled, average, seen=both)
        images = sample(predict, studio, prompts(), args.size // 4)
        save_grid(torch.cat([seen, images]), args.work / "controlnet.png")
        return {}

    def export(average):
        copy.deepcopy(average).half().save_pretrained(args.out / "controlnet")

    run.train(args.minutes, loss_of, report, export)
