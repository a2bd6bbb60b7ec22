"""Trains the small `AutoencoderKL` of the embedded model: 64×64 pixels to 16×16×4 latents.

python examples/emoji/train_vae.py --data data/emoji --output runs/emoji-vae
"""

import argparse
from pathlib import Path

import torch
from common import fit, image_grid, load_split, normalise, to_pixels
from diffusers import AutoencoderKL
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.image import peak_signal_noise_ratio

KL_WEIGHT = 1e-6  # as Stable Diffusion's autoencoders: just enough to keep the latents bounded


def build_vae() -> AutoencoderKL:
    """Two halvings; narrow at full resolution, where a convolution costs most on a CPU."""
    return AutoencoderKL(
        block_out_channels=(16, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


class VAEModule(LightningModule):
    """Reconstruction (L1) and a small KL term, AdamW with a one-cycle learning rate."""

    def __init__(self, steps: int, learning_rate: float) -> None:
        super().__init__()
        self.vae = build_vae()
        self.steps, self.learning_rate = steps, learning_rate
        self.vae.compile()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images = normalise(batch[0])
        posterior = self.vae.encode(images).latent_dist
        reconstruction = self.vae.decode(posterior.sample()).sample
        error = F.l1_loss(reconstruction.float(), images)
        divergence = posterior.kl().mean()
        self.log_dict({"train/l1": error, "train/kl": divergence}, prog_bar=True)
        return error + KL_WEIGHT * divergence

    def validation_step(self, batch: list[Tensor], batch_number: int) -> None:
        images = normalise(batch[0])
        reconstruction = self.vae.decode(self.vae.encode(images).latent_dist.mode()).sample.float().clamp(-1, 1)
        self.log("validation/psnr", peak_signal_noise_ratio(reconstruction, images, data_range=(-1.0, 1.0)), prog_bar=True)
        if batch_number == 0:
            grid = image_grid(torch.cat([images[:16], reconstruction[:16]]), columns=16) / 2 + 0.5
            self.logger.experiment.add_image("validation/reconstruction", grid, self.global_step)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, self.steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Makes every latent channel zero-mean and unit-variance, by an exact change of the two 1×1 convolutions."""
    latents = torch.cat([vae.encode(normalise(part)).latent_dist.mode() for part in pixels.split(64)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= deviation[None, :, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--output", type=Path, default=Path("runs/emoji-vae"))
    parser.add_argument("--styles", nargs="+", default=["noto", "fluent", "twemoji"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()

    pixels = to_pixels(load_split(options.data, "train", options.styles))
    held_out = to_pixels(load_split(options.data, "validation", ["noto"]))
    module = VAEModule(options.steps, options.learning_rate)
    train = DataLoader(TensorDataset(pixels), options.batch_size, shuffle=True, drop_last=True)
    fit(module, train, DataLoader(TensorDataset(held_out), 50), options.output, options.steps, validate_every=500)
    vae = module.vae.eval()
    fold_normalisation(vae, pixels)
    vae.save_pretrained(options.output / "vae")
    print(f"Saved {options.output / 'vae'}")


if __name__ == "__main__":
    main()
