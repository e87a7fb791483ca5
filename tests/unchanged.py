"""That a model is bit for bit what it was: its weights, its modules and what hangs on them."""

from contextlib import contextmanager

import torch


def picture(model):
    """All of a LatentDiffusion that a run could leave changed; bits of weights, ids of the rest."""
    result = {"grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled()}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        whole = getattr(model, part, None)
        if whole is None:  # only Stable Diffusion XL has a second one
            continue
        for name, module in whole.named_modules():
            result[part, name] = {k: identity(v) for k, v in vars(module).items()}
        for name, value in whole.state_dict().items():
            layout = (value.shape, value.stride(), value.dtype, value.device, value.data_ptr())
            bits = value.reshape(-1).numpy().tobytes()
            result[part, "weight", name] = (*layout, hash(bits))
        result[part, "order"] = list(whole.state_dict())
    schedule = vars(model.scheduler)
    result["scheduler"] = {k: v.tolist() if isinstance(v, torch.Tensor) else v
                           for k, v in schedule.items()}  # fmt: skip
    return result


def identity(value):
    if isinstance(value, dict):
        return hash((tuple(value), tuple(map(id, value.values()))))
    return value if isinstance(value, bool | int | float | str | None) else id(value)


@contextmanager
def unchanged(model):
    """Whatever happens in the block, the model is afterwards what it was before."""
    before = picture(model)
    try:
        yield
    finally:
        after = picture(model)
        different = [
            key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
        ]
        assert not different, f"changed: {different[:5]}"
