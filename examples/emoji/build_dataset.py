"""Builds the text-to-emoji dataset from four npm packages.

    python examples/emoji/build_dataset.py --output data/emoji

Captions and keywords come from ``emojibase-data`` (MIT); images from ``emoji-datasource-google`` (Noto Emoji, Apache-2.0),
``@lobehub/fluent-emoji-3d`` (Fluent Emoji, MIT) and ``emoji-datasource-twitter`` (Twemoji, CC-BY-4.0). The packages are
fetched with ``npm pack`` unless they already lie in ``--packages``.

Every row is one image: ``image`` (64×64 RGB on white), ``caption``, ``keywords``, ``hexcode``, ``style``. The splits are made
by emoji, so a caption of the validation or test split was never seen in any style.
"""

import argparse
import json
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as PILImage

PACKAGES = {
    "captions": "emojibase-data@17.0.0",
    "noto": "emoji-datasource-google@16.0.0",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
}
IMAGE_FOLDERS = {"noto": "img/google/64", "fluent": "assets", "twemoji": "img/twitter/64"}
FLAG_GROUP = 9
NUM_HELD_OUT = {"validation": 100, "test": 128}
FEATURES = Features(
    {
        "image": Image(),
        "caption": Value("string"),
        "keywords": Sequence(Value("string")),
        "hexcode": Value("string"),
        "style": Value("string"),
    }
)


def fetch_package(name: str, folder: Path) -> Path:
    """Returns the unpacked folder of an npm package such as ``emojibase-data@17.0.0``, fetching it once."""
    unpacked = folder / name.replace("@", "-").replace("/", "-").strip("-")
    if not (unpacked / "package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", name], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        with tarfile.open(folder / packed) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (folder / "unpacked" / "package").rename(unpacked)
    return unpacked


def read_captions(folder: Path) -> list[dict]:
    """Reads every emoji but flags and regional indicators: hexcode, caption and keywords, in the order of Unicode."""
    emojis = json.loads((folder / "en" / "data.json").read_text())
    return [
        {"hexcode": emoji["hexcode"], "caption": emoji["label"], "keywords": emoji.get("tags", [])}
        for emoji in emojis
        if emoji.get("group") not in (None, FLAG_GROUP)
    ]


def find_image(folder: Path, hexcode: str) -> Path | None:
    """Finds an emoji's image: the packages disagree on whether the variation selector FE0F belongs in the name."""
    code = hexcode.lower()
    bare = code.replace("-fe0f", "")
    for candidate in (code, bare, f"{bare}-fe0f", bare.replace("-200d", "-fe0f-200d")):
        for suffix in (".png", ".webp"):
            if (folder / f"{candidate}{suffix}").is_file():
                return folder / f"{candidate}{suffix}"
    return None


def on_white(path: Path, size: int = 64) -> PILImage.Image:
    """Loads an image, composed on white, `size`×`size` pixels RGB."""
    image = PILImage.open(path).convert("RGBA")
    if image.size != (size, size):
        image = image.resize((size, size), PILImage.Resampling.LANCZOS)
    canvas = PILImage.new("RGBA", image.size, (255, 255, 255, 255))
    canvas.alpha_composite(image)
    return canvas.convert("RGB")


def split_by_emoji(captions: list[dict], seed: int) -> dict[str, list[dict]]:
    """Splits the captions; the held-out emoji are drawn once, from a seed."""
    order = list(range(len(captions)))
    random.Random(seed).shuffle(order)
    splits: dict[str, list[dict]] = {}
    for split, count in NUM_HELD_OUT.items():
        splits[split], order = [captions[index] for index in sorted(order[:count])], order[count:]
    return {"train": [captions[index] for index in sorted(order)], **splits}


def rows(captions: list[dict], folders: dict[str, Path]) -> Iterator[dict]:
    """Yields one row an image; a style that lacks an emoji is left out."""
    for style, images in folders.items():
        for caption in captions:
            path = find_image(images, caption["hexcode"])
            if path is not None:
                yield {"image": on_white(path), **caption, "style": style}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/emoji"), help="folder of the dataset")
    parser.add_argument("--packages", type=Path, default=Path("data/npm"), help="folder of the npm packages")
    parser.add_argument("--prompts", type=Path, default=Path("checkpoints/emoji-prompts"), help="folder of the prompt files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    options = parser.parse_args()

    packages = {key: fetch_package(name, options.packages) for key, name in PACKAGES.items()}
    folders = {style: packages[style] / folder for style, folder in IMAGE_FOLDERS.items()}
    captions = [
        caption
        for caption in read_captions(packages["captions"])
        if find_image(folders["noto"], caption["hexcode"]) is not None
    ]
    splits = split_by_emoji(captions, options.seed)
    dataset = DatasetDict(
        {split: Dataset.from_list(list(rows(members, folders)), features=FEATURES) for split, members in splits.items()}
    )
    dataset.save_to_disk(options.output)
    options.prompts.mkdir(parents=True, exist_ok=True)
    for split, members in splits.items():
        lines = (json.dumps({"prompt": member["caption"], "hexcode": member["hexcode"]}) for member in members)
        (options.prompts / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        counts = {style: sum(row == style for row in dataset[split]["style"]) for style in folders}
        print(f"{split}: {len(members)} captions, images {counts}")


if __name__ == "__main__":
    main()
