"""How recognisable is what the embedded model makes? Ranks each prompt among all captions, by the embedded scorer.

    python examples/emoji/check_base.py --data data/emoji

Prints, for 200 training captions, how often the caption is among the scorer's first five of all captions: for generated images,
for the real ones (the ceiling) and for generated images with shuffled captions (the floor); and the time of a generation. Writes a
grid of generated images.
"""

import argparse
import time
from pathlib import Path

import torch
from common import image_grid, load_split, to_pixels
from diffusers import DiffusionPipeline
from torch import Tensor

from ada.data import load_prompts
from ada.grid import to_picture
from ada.rewards import load_features


def top_five(images: Tensor, captions: Tensor, own: Tensor, features) -> float:
    """Share of images `(images, 3, 64, 64)` whose own caption (a row of the embeddings `captions`) ranks in the first five."""
    scores = features.embed_images(images) @ captions.T
    mine = scores.gather(1, own[:, None])
    return ((scores > mine).sum(1) < 5).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/emoji-dit")
    parser.add_argument("--scorer", default="checkpoints/emoji-scorer")
    parser.add_argument("--prompts", default="checkpoints/emoji-prompts")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="for the real images")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=Path("outputs/base"))
    options = parser.parse_args()

    features = load_features(options.scorer)
    chosen = load_prompts(options.prompts, "train", limit=options.limit)
    rows = load_split(options.data, "train", ["noto"]).select(chosen["index"])
    assert rows["caption"][:] == chosen["prompt"][:]
    everything = [
        prompt for split in ("train", "validation", "test") for prompt in load_prompts(options.prompts, split)["prompt"]
    ]
    captions = features.embed_prompts(everything)
    own = torch.tensor(chosen["index"])

    pipeline = DiffusionPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)
    images, started = [], time.monotonic()
    for start in range(0, len(chosen), 20):
        prompts = chosen["prompt"][start : start + 20]
        images.append(
            pipeline(
                list(prompts), num_inference_steps=20, guidance_scale=options.guidance_scale, max_sequence_length=24,
                generator=torch.Generator().manual_seed(start), use_resolution_binning=False, clean_caption=False, output_type="pt",
            ).images
        )  # fmt: skip
    seconds = (time.monotonic() - started) / len(chosen)
    generated = torch.cat(images)
    print(f"captions in all                    {len(everything)}")
    print(f"generated images, caption in top 5 {top_five(generated, captions, own, features):.1%}")
    print(f"real images (ceiling)              {top_five(to_pixels(rows) / 255, captions, own, features):.1%}")
    print(f"shuffled captions (floor)          {top_five(generated, captions, own.roll(1), features):.1%}")
    print(
        f"seconds per image                  {seconds:.2f}  (20 steps, guidance, batch 20, {torch.get_num_threads()} threads)"
    )
    options.output.mkdir(parents=True, exist_ok=True)
    to_picture(image_grid(generated[: options.limit // 20 * 20][:100], columns=20)).save(options.output / "grid.png")
    print(f"grid                               {options.output / 'grid.png'}")


if __name__ == "__main__":
    main()
