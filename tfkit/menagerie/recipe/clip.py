"""Stage 1, the CLIP: frames and captions find each other.

Besides whole captions, equal ones counting as one, it is asked for each attribute: which of the
captions that differ in it alone is the frame's? That is how it will be used. And which caption that
names it alone ("a cat") is the frame's, and the whole caption's: so the text tower tells attributes
apart even before the vision tower, which takes far longer, can see them.
"""

import random
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from tfkit.clip import pixels
from tfkit.menagerie import anatomy, vocabulary
from tfkit.menagerie.folder import (
    save_half,
    save_text_encoder,
    text_config,
    vision_config,
    write_processor,
    write_tokenizer,
)
from tfkit.menagerie.recipe.data import captions, dataset, held_out, mirror, part_labels, pick
from tfkit.menagerie.recipe.loop import Run

KINDS = tuple(vocabulary.ATTRIBUTES)
_WORDS = [len(words) for words in vocabulary.ATTRIBUTES.values()]
_LABELS = len(anatomy.PARTS) + sum(_WORDS)  # what each patch is asked
BATCH, ASKED = 128, 32  # frames a step, and of how many of them each attribute is asked


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], device) -> dict[str, Tensor]:
    """Token ids (n, length), as the models of the menagerie take them."""
    out = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
        return_tensors="pt",
    )  # fmt: skip
    return {"input_ids": out.input_ids.to(device)}


def choices(description: vocabulary.Description, kind: str) -> list[str]:
    """The captions that differ from the description's in one attribute alone, the true one too."""
    return [
        vocabulary.compose(vocabulary.change(description, **{kind: word}))
        for word in vocabulary.ATTRIBUTES[kind]
    ]


def scores(model, tokenizer, images: Tensor, descriptions: list, kind: str) -> Tensor:
    """Cosine similarity (n, words) of unit image embeddings with the choices of each."""
    texts = [text for d in descriptions for text in choices(d, kind)]
    embedded = embed(model, tokenizer, texts, images.device)
    embedded = rearrange(embedded, "(n w) d -> n w d", n=len(descriptions))
    return torch.einsum("nd,nwd->nw", images, embedded)


def embed(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str], device) -> Tensor:
    """Unit embeddings (n, d) of texts."""
    tokens = tokenize(tokenizer, texts, device)
    pooled = model.text_model(**tokens).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def truth(descriptions: list, kind: str, device) -> Tensor:
    """Which of the choices is right (n,)."""
    words = vocabulary.ATTRIBUTES[kind]
    return torch.tensor(
        [words.index(vocabulary.attribute(d, kind)) for d in descriptions], device=device
    )


def jitter(images: Tensor) -> Tensor:
    """The same frames (n, 3, s, s), half of them seen nearer and to a side, each its own way."""
    zoom = torch.empty(len(images)).uniform_(0.7, 1.0)
    zoom[::2] = 1.0
    shift = (1 - zoom)[:, None] * torch.empty(len(images), 2).uniform_(-1, 1)
    turn = torch.eye(2)[None] * zoom[:, None, None]
    affine = torch.cat([turn, shift[:, :, None]], 2).to(images)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(args):
    """Trains both towers; the text tower then is the frozen text encoder of the UNet.

    With ``args.vision_only`` the text tower stays, and pictures of one animal are all there is.
    """
    tokenizer = write_tokenizer(args.out / "tokenizer")
    config = CLIPConfig(
        text_config=text_config(tokenizer), vision_config=vision_config(), projection_dim=64
    )
    model = CLIPModel(config).to(args.device)
    frames, descriptions = dataset(args.work, args.images)
    held, held_descriptions = held_out(args)
    run = Run("clip", model, args, rate=args.rate or 1e-3, ema=0.998)
    data = frames, descriptions, tokenizer, args.device
    if args.vision_only:
        labeler = torch.nn.Linear(config.vision_config.hidden_size, _LABELS).to(args.device)
        run.optimizer.add_param_group({"params": labeler.parameters()})
        parts = part_labels(args.work, args.images)
        loss_of = _vision(model, labeler, parts, *data)
    else:
        loss_of = _both(model, *data)

    def report(average):
        rates = read_rates(average, tokenizer, held, held_descriptions, args.device)
        return {f"reads {kind}": rate for kind, rate in rates.items()}

    def export(average):
        save_half(average, args.out / "clip")
        write_tokenizer(args.out / "clip")
        write_processor(args.out / "clip")
        if not args.vision_only:
            save_text_encoder(_text_tower(average), args.out / "text_encoder")

    run.train(args.minutes, loss_of, report, export)


def _both(model, frames, descriptions, tokenizer, device):
    """The loss of both towers on a random batch."""
    rng, size = random.Random(), vision_config()["image_size"]

    def whole(of: list) -> Tensor:
        return embed(model, tokenizer, [vocabulary.compose(d) for d in of], device)

    def loss_of():
        images, index = pick(frames, BATCH, device, len(descriptions))
        texts = captions(index, descriptions, rng, keep=(0.7, 1.3))
        inputs = tokenize(tokenizer, texts, device)
        out = model(**inputs, pixel_values=jitter(pixels(images, size)))
        same = torch.tensor([[a == b for b in texts] for a in texts], device=device).float()
        target = same / same.sum(1, keepdim=True)
        logits = out.logits_per_image
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        single = [n for n, i in enumerate(index.tolist()) if len(descriptions[i].looks) == 1]
        asked = single[:ASKED]
        of = [descriptions[index[n]] for n in asked]
        for kind in KINDS:
            right = truth(of, kind, device)
            found = scores(model, tokenizer, out.image_embeds[asked], of, kind)
            loss = loss + 0.5 * F.cross_entropy(20 * found, right)
            bare = embed(model, tokenizer, choices(vocabulary.Description(), kind), device)
            for seen in (out.image_embeds[asked], whole(of)):
                loss = loss + 0.25 * F.cross_entropy(20 * seen @ bare.T, right)
        return loss, len(texts)

    return loss_of


def _vision(model, labeler, parts, frames, descriptions, tokenizer, device):
    """The loss of the vision tower alone; the captions are embedded once.

    Each patch is also asked which parts of the animal it shows, and the animal's attributes: a
    transformer learns shapes from so few pictures only where every token is told something (token
    labeling: Jiang et al., 2021).
    """
    for part in (model.text_model, model.text_projection):
        part.requires_grad_(False)
    model.logit_scale.requires_grad_(False)
    words = list(vocabulary.ATTRIBUTES.values())
    scenes = [
        vocabulary.Description(((vocabulary.Look(species, color, coat), 1),), ground)
        for species, color, coat, ground in product(*words)
    ]
    with torch.no_grad():
        bank = embed(model, tokenizer, [vocabulary.compose(scene) for scene in scenes], device)
    bank = bank.reshape(*map(len, words), -1)
    single = torch.tensor([i for i, d in enumerate(descriptions) if len(d.looks) == 1])
    of = [descriptions[i] for i in single]
    labels = torch.stack([truth(of, kind, device) for kind in KINDS], 1)
    size, patch = vision_config()["image_size"], vision_config()["patch_size"]

    def batch(chosen):
        """Pictures (b, 3, s, s) and the share of each part in each of their patches (b, n, p)."""
        at = single[chosen]
        shown = F.one_hot(parts[at].long(), len(anatomy.PARTS)).to(device).float()
        both = [pixels(frames[at].to(device).float() / 255, size), shown.movedim(-1, 1)]
        seen, shown = jitter(mirror(torch.cat(both, 1))).split([3, len(anatomy.PARTS)], 1)
        return seen, rearrange(F.avg_pool2d(shown, patch), "b p h w -> b (h w) p")

    def loss_of():
        chosen = torch.randint(len(single), (BATCH,))
        right, (images, shown) = labels[chosen.to(device)], batch(chosen)
        out = model.vision_model(pixel_values=images)
        seen = F.normalize(model.visual_projection(out.pooler_output), dim=-1)
        loss = torch.zeros((), device=device)
        for axis in range(len(KINDS)):  # captions that differ along one attribute alone
            lines = bank.movedim(axis, -2)[
                tuple(right[:, a] for a in range(len(KINDS)) if a != axis)
            ]
            found = torch.einsum("nd,nwd->nw", seen, lines)
            loss = loss + F.cross_entropy(20 * found, right[:, axis])
        told = labeler(out.last_hidden_state[:, 1:]).split([len(anatomy.PARTS), *_WORDS], -1)
        loss = loss + F.cross_entropy(told[0].movedim(-1, 1), shown.movedim(-1, 1))
        animal = 1 - shown[..., 0]
        for axis, logits in enumerate(told[1:]):
            asked = right[:, None, axis].expand(animal.shape)
            error = F.cross_entropy(logits.movedim(-1, 1), asked, reduction="none")
            loss = loss + (animal * error).sum() / animal.sum()
        return loss, BATCH

    return loss_of


def _text_tower(model: CLIPModel) -> CLIPTextModel:
    """The text tower alone, as Stable Diffusion's text encoder."""
    text = CLIPTextModel(model.config.text_config)
    tower = {k: v for k, v in model.state_dict().items() if k.startswith("text_model.")}
    own = text.state_dict()
    prefix = "" if next(iter(own)).startswith("text_model.") else "text_model."
    text.load_state_dict({k.removeprefix(prefix): v.float() for k, v in tower.items()})
    return text


@torch.no_grad()
def read_rates(model, tokenizer, frames: Tensor, descriptions: list, device) -> dict[str, float]:
    """How often each attribute of single animals is read right, among all captions of it.

    frames: uint8 (n, 3, h, w), the first of them with descriptions.
    """
    single = [i for i, d in enumerate(descriptions) if len(d.looks) == 1][:256]
    of = [descriptions[i] for i in single]
    seen = pixels(frames[single].to(device).float() / 255, model.config.vision_config.image_size)
    images = model.visual_projection(model.vision_model(pixel_values=seen).pooler_output)
    images = F.normalize(images, dim=-1)
    return {
        kind: (scores(model, tokenizer, images, of, kind).argmax(1) == truth(of, kind, device))
        .float().mean().item()
        for kind in KINDS
    }  # fmt: skip
