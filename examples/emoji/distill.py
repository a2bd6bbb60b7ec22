"""Distils the embedded model to four steps without guidance.

    python examples/emoji/distill.py

Progressive distillation (Salimans and Ho, 2022, arXiv 2202.00512) in a single round, with guidance baked in (Meng et al., 2023, arXiv
2210.03142): the teacher's ways from noise to image are recorded once, and the student learns to go a quarter of one in a single step of
Euler's. It needs captions only: composed ones, which the teacher was not trained on. The same noise leads to the teacher's image, so that
both can be compared pixel by pixel; latent consistency models draw new noise between their steps, and of diffusers' schedulers for them
``LCMScheduler`` knows no flow matching and ``FlowMatchLCMScheduler`` lacks what ``PixArtAlphaPipeline`` asks of a scheduler.

The result is a stock ``PixArtAlphaPipeline`` folder, for ``num_inference_steps=4`` and ``guidance_scale=1.0``. The same command run again
goes on from the last checkpoint; other settings need another ``--output``.
"""

import argparse
import copy
from pathlib import Path

import torch
from common import NUM_TOKENS, fit, image_grid
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline
from lightning.pytorch import LightningModule
from optimizers import build_optimizer, trapezoidal_schedule
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from ada.data import load_prompts
from ada.progress import progress
from ada.rollouts.pipeline import load_pipeline

NUM_STEPS = 4
CALL = {"max_sequence_length": NUM_TOKENS, "use_resolution_binning": False, "clean_caption": False}


class Ways(Dataset):
    """The teacher's ways from noise to image, in sections: where one step of the student starts, and its mean velocity.

    Args:
        latents: `(captions, NUM_STEPS + 1, channels, height, width)` at the student's noise levels, the image last.
        embeds: of the captions, `(captions, tokens, width)`.
        mask: which tokens there are, `(captions, tokens)`.
        scheduler: the student's, set to its steps.
    """

    def __init__(self, latents: Tensor, embeds: Tensor, mask: Tensor, scheduler: DPMSolverMultistepScheduler) -> None:
        self.starts = latents[:, :-1]
        self.velocities = latents.diff(dim=1) / scheduler.sigmas.diff()[:, None, None, None]
        self.embeds, self.mask, self.timesteps = embeds, mask, scheduler.timesteps

    def __len__(self) -> int:
        return len(self.starts) * NUM_STEPS

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        way, step = divmod(index, NUM_STEPS)
        return self.starts[way, step], self.velocities[way, step], self.embeds[way], self.mask[way], self.timesteps[step]


@torch.no_grad()
def record_ways(
    teacher: PixArtAlphaPipeline,
    prompts: list[str],
    sections: int,
    guidance_scale: float,
    seed: int,
    file: Path,
    batch_size: int = 32,
) -> Ways:
    """Draws the captions with the teacher, in mixed precision, `sections` of its steps to one of the student's.

    The noise levels of both are evenly spaced, so every `sections`-th of the teacher's is one of the student's. Ways that lie in `file`
    are read instead.

    Raises:
        ValueError: those in the file were drawn with other settings.
    """
    settings = {"prompts": prompts, "sections": sections, "guidance_scale": guidance_scale, "seed": seed}
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        if kept["settings"] != settings:
            raise ValueError(f"{file} was drawn for other captions, sections, guidance or seed: give another --output.")
        return Ways(*kept["ways"], student_scheduler(teacher))
    generator, config = torch.Generator().manual_seed(seed), teacher.transformer.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    latents, embeds, masks = [], [], []
    with progress("Drawing with the teacher", len(prompts)) as advance:
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            way = [torch.randn(len(part), *shape, generator=generator)]
            encoded = teacher.encode_prompt(part, False, clean_caption=False, max_sequence_length=NUM_TOKENS)
            embeds.append(encoded[0])
            masks.append(encoded[1])
            with torch.autocast(teacher.device.type, torch.bfloat16):
                teacher(
                    part, num_inference_steps=sections * NUM_STEPS, guidance_scale=guidance_scale, latents=way[0].clone(),
                    callback=lambda step, timestep, now, way=way: way.append(now.float()), output_type="latent", **CALL,
                )  # fmt: skip
            latents.append(torch.stack(way[::sections], 1))
            advance(len(part))
    ways = [torch.cat(latents), torch.cat(embeds), torch.cat(masks)]
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"settings": settings, "ways": ways}, file)
    return Ways(*ways, student_scheduler(teacher))


def student_scheduler(teacher: PixArtAlphaPipeline) -> DPMSolverMultistepScheduler:
    """The teacher's scheduler at first order: Euler's steps on the flow, whose noise levels do not change."""
    scheduler = DPMSolverMultistepScheduler.from_config(teacher.scheduler.config, solver_order=1)
    scheduler.set_timesteps(NUM_STEPS)
    return scheduler


class Distillation(LightningModule):
    """The student, which starts as the teacher, and its exponential average.

    Args:
        teacher: is left as it is.
        options: of the command line.
        prompts: captions of the pictures that are logged.
    """

    def __init__(self, teacher: PixArtAlphaPipeline, options: argparse.Namespace, prompts: list[str]) -> None:
        super().__init__()
        self.options, self.prompts = options, prompts
        self.frozen = {name: part for name, part in teacher.components.items() if name not in ("transformer", "scheduler")}
        self.scheduler = student_scheduler(teacher)
        self.transformer = copy.deepcopy(teacher.transformer).train().requires_grad_(True)
        self.average = AveragedModel(self.transformer, multi_avg_fn=get_ema_multi_avg_fn(options.average_decay))

    def training_step(self, batch: tuple[Tensor, ...]) -> Tensor:
        starts, velocities, embeds, mask, timesteps = batch
        # the default attention backward is several times slower on CPU in bf16
        with sdpa_kernel(SDPBackend.MATH):
            velocity = self.transformer(
                starts, encoder_hidden_states=embeds, encoder_attention_mask=mask, timestep=timesteps, return_dict=False
            )[0]
        loss = F.mse_loss(velocity.float(), velocities)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        self.average.update_parameters(self.transformer)

    def validation_step(self, batch: Tensor, batch_number: int) -> None:
        images = self.student()(
            self.prompts, num_inference_steps=NUM_STEPS, guidance_scale=1.0, output_type="pt",
            generator=torch.Generator().manual_seed(0), **CALL,
        ).images  # fmt: skip
        self.logger.experiment.add_image("validation/samples", image_grid(images.float(), columns=4), self.global_step)

    def student(self) -> PixArtAlphaPipeline:
        """The averaged weights as a stock pipeline."""
        pipeline = PixArtAlphaPipeline(**self.frozen, transformer=self.average.module, scheduler=self.scheduler).to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def configure_optimizers(self) -> dict:
        options = self.options
        optimizer = build_optimizer(self.transformer, options.learning_rate, options.matrix_learning_rate)
        schedule = trapezoidal_schedule(optimizer, warmup=options.steps // 10, decay=options.steps // 2, steps=options.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="checkpoints/emoji-dit")
    parser.add_argument("--prompts", default="checkpoints/emoji-prompts", help="folder of composed_train.jsonl and -validation")
    parser.add_argument("--captions", type=int, default=448, help="how many the teacher draws, one noise each")
    parser.add_argument("--sections", type=int, default=2, help="steps of the teacher to one of the student's")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="of the teacher, which the student learns")
    parser.add_argument("--output", type=Path, default=Path("runs/emoji-distilled"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of AdamW")
    parser.add_argument("--matrix-learning-rate", type=float, default=1e-3, help="of Muon on matrices; 0: AdamW for all")
    parser.add_argument("--average-decay", type=float, default=0.9)
    options = parser.parse_args(arguments)

    teacher = load_pipeline(options.teacher, torch.float32)
    prompts = load_prompts(options.prompts, "composed_train", limit=options.captions)
    shown = load_prompts(options.prompts, "composed_validation", limit=16)
    ways = record_ways(
        teacher, list(prompts["prompt"]), options.sections, options.guidance_scale, 0, options.output / "ways.pt"
    )
    module = Distillation(teacher, options, list(shown["prompt"]))
    train = DataLoader(ways, options.batch_size, shuffle=True, drop_last=True)
    fit(module, train, DataLoader([0]), options.output, options.steps, validate_every=50)
    pipeline = module.student()
    pipeline.transformer.half()
    pipeline.vae.half()
    pipeline.save_pretrained(options.output / "pipeline")
    print(f"Saved {options.output / 'pipeline'}: draw with num_inference_steps={NUM_STEPS}, guidance_scale=1.0")


if __name__ == "__main__":
    main()
