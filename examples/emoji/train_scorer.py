"""Trains the embedded model's scorer: a small CLIP over emoji images of three styles and their captions.

    python examples/emoji/train_scorer.py --data data/emoji --vae runs/emoji-vae/vae --output runs/emoji-scorer

The result is a stock `transformers.CLIPModel` folder. It prints how often a held-out image's own caption ranks first, or in the
first five, among the captions of all held-out emoji.
"""

import argparse
import random
from pathlib import Path

import torch
from common import fit, load_split, normalise, reword, to_pixels, tokenize
from diffusers import AutoencoderKL
from lightning.pytorch import LightningModule
from optimizers import build_optimizer, trapezoidal_schedule
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, T5Tokenizer

CAPTION_VARIANTS = 12


def build_scorer(tokenizer: T5Tokenizer) -> CLIPModel:
    """A ViT on 8×8 patches of 64×64 pixels and a two-layer text tower."""
    vision = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 5, "num_attention_heads": 6,
              "image_size": 64, "patch_size": 8, "hidden_act": "gelu"}  # fmt: skip
    text = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": len(tokenizer), "max_position_embeddings": 24, "hidden_act": "gelu",
            "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128, logit_scale_init_value=2.3))


class CaptionedImages(Dataset):
    """Images with several wordings of their captions; `label` is the emoji, shared by its styles."""

    def __init__(self, pixels: Tensor, rows: dict[str, list], tokenizer: T5Tokenizer) -> None:
        wordings = random.Random(0)
        texts = [
            reword(caption, words, wordings)
            for caption, words in zip(rows["caption"], rows["keywords"], strict=True)
            for _ in range(CAPTION_VARIANTS)
        ]
        self.pixels = pixels
        self.tokens = tokenize(tokenizer, texts).unflatten(0, (len(pixels), CAPTION_VARIANTS))
        labels = {code: label for label, code in enumerate(sorted(set(rows["hexcode"])))}
        self.labels = torch.tensor([labels[code] for code in rows["hexcode"]])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.pixels[index], self.tokens[index, random.randrange(CAPTION_VARIANTS)], self.labels[index]


def augment(images: Tensor) -> Tensor:
    """Small shifts, scales and rotations, contrast, blur, noise and a missing patch: what a generated image may suffer."""
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape, device=images.device).uniform_(low, high)

    angle, scale = uniform(-0.15, 0.15), uniform(0.9, 1.12)
    rows = [
        scale * angle.cos(),
        -scale * angle.sin(),
        uniform(-0.1, 0.1),
        scale * angle.sin(),
        scale * angle.cos(),
        uniform(-0.1, 0.1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
    # white is 0 after the shift, so that what comes in from outside is background
    moved = F.grid_sample(images - 1, grid, align_corners=False) * uniform(0.8, 1.2, 3, 1, 1) + 1
    blurred = F.avg_pool2d(moved, 3, 1, 1, count_include_pad=False)
    moved = torch.lerp(moved, blurred, (uniform(-1.0, 1.0, 1, 1, 1)).clamp(min=0))
    moved = moved + torch.randn_like(moved) * uniform(0, 0.12, 1, 1, 1)
    hole = F.interpolate((uniform(0, 1, 1, 8, 8) < 0.06).float(), scale_factor=8)
    return torch.lerp(moved, torch.ones_like(moved), hole)


class ScorerModule(LightningModule):
    """Symmetric contrastive loss (CLIP), where every image and caption of the same emoji is a positive."""

    def __init__(self, tokenizer: T5Tokenizer, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options
        self.model = build_scorer(tokenizer)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        pixels, tokens, labels = batch
        with sdpa_kernel(SDPBackend.MATH):
            output = self.model(pixel_values=augment(normalise(pixels)), input_ids=tokens, attention_mask=(tokens != 0).long())
        targets = (labels[:, None] == labels).float()
        targets = targets / targets.sum(1, keepdim=True)
        logits = output.logits_per_image.float()
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_number: int) -> None:
        ranks = caption_ranks(self.model, *batch)
        self.log_dict(
            {"validation/top1": (ranks < 1).float().mean(), "validation/top5": (ranks < 5).float().mean()}, prog_bar=True
        )

    def configure_optimizers(self) -> dict:
        optimizer = build_optimizer(
            self.model, self.options.learning_rate, self.options.matrix_learning_rate, weight_decay=0.05
        )
        schedule = trapezoidal_schedule(optimizer, warmup=100, decay=self.options.steps // 2, steps=self.options.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def caption_ranks(model: CLIPModel, pixels: Tensor, tokens: Tensor) -> Tensor:
    """Rank of each image's own caption (row i of `tokens`) among all the captions; 0 is first. Int64 `(images,)`."""
    output = model(pixel_values=normalise(pixels), input_ids=tokens, attention_mask=(tokens != 0).long())
    logits = output.logits_per_image
    return (logits > logits.diagonal()[:, None]).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--tokenizer", type=Path, default=Path("checkpoints/emoji-dit/tokenizer"))
    parser.add_argument(
        "--vae", type=Path, default=Path("checkpoints/emoji-dit/vae"), help="its reconstructions are a style more"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/emoji-scorer"))
    parser.add_argument("--export", type=Path, default=None, help="also write the scorer, in half precision, here")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of AdamW")
    parser.add_argument("--matrix-learning-rate", type=float, default=2e-3, help="of Muon on matrices")
    options = parser.parse_args()

    dataset = load_split(options.data, "train", ["noto", "fluent", "twemoji"])
    pixels = to_pixels(dataset)
    rows = {name: list(dataset[name]) for name in ("caption", "keywords", "hexcode", "style")}
    noto = [index for index, style in enumerate(rows["style"]) if style == "noto"]
    vae = AutoencoderKL.from_pretrained(options.vae).eval()
    with torch.no_grad():
        blurry = torch.cat([vae(normalise(part)).sample for part in pixels[noto].split(64)])
    pixels = torch.cat([pixels, ((blurry.clamp(-1, 1) + 1) * 127.5).round().byte()])
    rows = {name: values + [values[index] for index in noto] for name, values in rows.items()}

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    data = CaptionedImages(pixels, rows, tokenizer)
    held_out = [load_split(options.data, split, ["noto"]) for split in ("validation", "test")]
    held_pixels = torch.cat([to_pixels(split) for split in held_out])
    held_tokens = tokenize(tokenizer, [caption for split in held_out for caption in split["caption"]])
    module = ScorerModule(tokenizer, options)
    train = DataLoader(data, options.batch_size, shuffle=True, drop_last=True)
    validation = DataLoader([(held_pixels, held_tokens)], batch_size=None)
    fit(module, train, validation, options.output, options.steps, validate_every=200)

    model = module.model.eval()
    folder = options.export or options.output / "scorer"
    ranks = caption_ranks(model, held_pixels, held_tokens)
    first, first_five = ((ranks < count).float().mean() for count in (1, 5))
    print(f"held-out images: own caption first of {len(ranks)}: {first:.1%}, in the first five: {first_five:.1%}")

    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size=64, crop_size=64, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    print(f"Saved {folder}")


if __name__ == "__main__":
    main()
