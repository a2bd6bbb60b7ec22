"""Trains the embedded text-to-emoji model: a small T5 encoder and a PixArt transformer, by flow matching.

    python examples/emoji/train_dit.py --data data/emoji --vae runs/emoji-vae/vae --output runs/emoji-dit

The result is a stock ``PixArtAlphaPipeline`` folder. The same command run again goes on from the last checkpoint; a smaller
``--steps`` then ends an unfinished run early, with the same decay of the learning rate.
"""

import argparse
import random
from pathlib import Path

import torch
from common import NUM_TOKENS, fit, image_grid, load_split, normalise, reword, to_pixels, tokenize
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from lightning.pytorch import LightningModule
from optimizers import build_optimizer, trapezoidal_schedule
from tokenizers import SentencePieceUnigramTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from transformers import T5Config, T5EncoderModel, T5Tokenizer

CAPTION_VARIANTS = 12
EMPTY_CAPTION_RATE = 0.1
SAMPLE_PROMPTS = [
    "red apple", "cat face", "rocket", "sunflower", "pizza", "bicycle", "blue heart", "penguin",
    "snowman", "birthday cake", "woman scientist", "crying face", "soccer ball", "umbrella", "octopus", "castle",
]  # fmt: skip


def train_tokenizer(texts: list[str], vocabulary: int = 3000) -> T5Tokenizer:
    """Trains a SentencePiece unigram vocabulary on the captions and wraps it as a stock `T5Tokenizer`."""
    trainer = SentencePieceUnigramTokenizer()
    trainer.train_from_iterator(texts, vocab_size=vocabulary, show_progress=False, unk_token="<unk>")
    learnt = [(piece, score) for piece, score in _unigram_vocabulary(trainer) if piece != "<unk>"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=special + learnt, extra_ids=0, model_max_length=120)


def _unigram_vocabulary(tokenizer: SentencePieceUnigramTokenizer) -> list[tuple[str, float]]:
    import json

    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """A T5 v1.1 encoder, small enough to be trained along with the transformer."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary, d_model=192, d_kv=32, d_ff=512, num_layers=3, num_heads=6,
            dropout_rate=0.0, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip


def build_transformer() -> PixArtTransformer2DModel:
    """16 blocks, 3 heads of 64, 16×16×4 latents in patches of 2: 64 tokens, 9.9 M parameters."""
    return PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=64, num_layers=16, cross_attention_dim=192, caption_channels=192,
        in_channels=4, out_channels=4, sample_size=16, patch_size=2,
    )  # fmt: skip


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++(2M) on the flow-matching path."""
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)


class CaptionedLatents(Dataset):
    """Latents of every training image with several tokenised wordings of its caption."""

    def __init__(self, latents: Tensor, captions: list[str], keywords: list[list[str]], tokenizer: T5Tokenizer) -> None:
        self.latents = latents
        wordings = random.Random(0)
        texts = [
            reword(caption, words, wordings)
            for caption, words in zip(captions, keywords, strict=True)
            for _ in range(CAPTION_VARIANTS)
        ]
        self.tokens = tokenize(tokenizer, texts).unflatten(0, (len(captions), CAPTION_VARIANTS))
        self.empty = tokenize(tokenizer, [""])[0]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if random.random() < EMPTY_CAPTION_RATE:
            return self.latents[index], self.empty
        return self.latents[index], self.tokens[index, random.randrange(CAPTION_VARIANTS)]


class DiTModule(LightningModule):
    """Flow matching: predict noise − image at x_σ = (1 − σ)·image + σ·noise, σ logit-normal (Esser et al., 2024)."""

    def __init__(self, tokenizer: T5Tokenizer, vae: AutoencoderKL, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options
        self.model = nn.ModuleDict({"text_encoder": build_text_encoder(len(tokenizer)), "transformer": build_transformer()})
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(options.average_decay))
        self.model["transformer"].compile()
        self.frozen = {"tokenizer": tokenizer, "vae": vae}  # a dict, so that Lightning does not save the autoencoder

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        latents, tokens = batch
        mask = (tokens != 0).long()
        noise = torch.randn_like(latents)
        sigmas = torch.sigmoid(torch.randn(len(latents), device=latents.device) + self.options.noise_shift)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None, None])
        # the default attention backward is several times slower on CPU in bf16
        with sdpa_kernel(SDPBackend.MATH):
            embeds = self.model["text_encoder"](tokens, attention_mask=mask).last_hidden_state
            velocity = self.model["transformer"](
                noisy, encoder_hidden_states=embeds, encoder_attention_mask=mask,
                timestep=sigmas * 1000, return_dict=False,
            )[0]  # fmt: skip
        loss = F.mse_loss(velocity.float(), noise - latents)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        if self.global_step >= 500:
            self.average.update_parameters(self.model)

    def validation_step(self, batch: list[Tensor], batch_number: int) -> None:
        images = self.pipeline()(
            SAMPLE_PROMPTS, num_inference_steps=20, guidance_scale=4.0, use_resolution_binning=False,
            max_sequence_length=NUM_TOKENS, clean_caption=False, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        grid = image_grid(torch.from_numpy(images).permute(0, 3, 1, 2), columns=8)
        self.logger.experiment.add_image("validation/samples", grid, self.global_step)

    def pipeline(self) -> PixArtAlphaPipeline:
        """The model as a stock pipeline, sharing weights with this module."""
        averaged = self.options.weights == "average" and self.global_step >= 500
        model = self.average.module if averaged else self.model
        pipeline = PixArtAlphaPipeline(
            **self.frozen, text_encoder=model["text_encoder"], transformer=model["transformer"], scheduler=build_scheduler()
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def configure_optimizers(self) -> dict:
        optimizer = build_optimizer(self.model, self.options.learning_rate, self.options.matrix_learning_rate)
        schedule = trapezoidal_schedule(optimizer, warmup=200, decay=self.options.steps // 4, steps=self.options.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encodes uint8 pixels `(images, 3, 64, 64)` to latents `(images, 4, 16, 16)`."""
    return torch.cat([vae.encode(normalise(part)).latent_dist.mode() for part in pixels.split(64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--vae", type=Path, default=Path("runs/emoji-vae/vae"))
    parser.add_argument("--output", type=Path, default=Path("runs/emoji-dit"))
    parser.add_argument("--export", type=Path, default=None, help="also write the pipeline, in half precision, here")
    parser.add_argument("--styles", nargs="+", default=["noto"])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of AdamW")
    parser.add_argument("--matrix-learning-rate", type=float, default=0.0, help="of Muon on matrices; 0: AdamW for all")
    parser.add_argument(
        "--weights", choices=["last", "average"], default="last", help="which to sample from and export: the last, whose "
        "learning rate has decayed to zero, or their exponential average, which is better while it has not",
    )  # fmt: skip
    parser.add_argument("--average-decay", type=float, default=0.999)
    parser.add_argument("--noise-shift", type=float, default=0.3, help="mean of the logit of the noise level")
    options = parser.parse_args()

    dataset = load_split(options.data, "train", options.styles)
    vae = AutoencoderKL.from_pretrained(options.vae).eval().requires_grad_(False)
    texts = [text for row in dataset.remove_columns("image") for text in (row["caption"], *row["keywords"])]
    tokenizer = train_tokenizer(texts)
    latents = encode_latents(vae, to_pixels(dataset))
    data = CaptionedLatents(latents, dataset["caption"], dataset["keywords"], tokenizer)
    module = DiTModule(tokenizer, vae, options)
    train = DataLoader(data, options.batch_size, shuffle=True, drop_last=True)
    fit(module, train, DataLoader([0]), options.output, options.steps, validate_every=500)
    pipeline = module.pipeline()
    # the text encoder stays in single precision: transformers loads what it finds, and PixArt's latents take its precision
    pipeline.transformer.half()
    pipeline.vae.half()
    pipeline.save_pretrained(options.export or options.output / "pipeline")
    print(f"Saved {options.export or options.output / 'pipeline'}")


if __name__ == "__main__":
    main()
