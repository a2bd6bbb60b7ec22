"""Records what the original implementations give, for the parity tests of `ada.rewards`.

Run from the repository's root; each package goes into a folder of its own, outside the environment, without its dependencies:

    pip install --no-deps --target ORIGINALS/image_reward image-reward==1.5
    pip install --no-deps --target ORIGINALS/open_clip open_clip_torch==3.3.0
    pip install --no-deps --target ORIGINALS/hpsv2 hpsv2==1.2.0
    pip install --no-deps --target ORIGINALS/skimage scikit-image==0.26.0 lazy_loader imageio
    pip install scipy networkx
    PYTHONPATH=tests python -m golden.record ORIGINALS [image_reward] [image_reward_full] [clip_rewards] [fidelity]

Weights, images and prompts come from `golden.formula`, so that a recording holds names, shapes and scores alone. Of the networks,
all code that runs is the original's; `golden.stubs` stands in for what they import beside it.
"""

import argparse
import importlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import stubs
from golden.formula import formula_image, formula_state, pairs
from golden.vocabularies import BERT_VOCABULARY, clip_vocabulary, save_bert, save_bpe
from PIL import Image
from transformers import BertTokenizer, CLIPImageProcessorPil

HERE = Path(__file__).parent
HPS_PROMPT = "it’s a cat &amp; a dog"
"""Needs the mending that open_clip's tokenizer does first."""
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 4, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": len(clip_vocabulary()), "width": 64, "heads": 16, "layers": 2},
}
IMAGE_REWARD_SMALL = {
    "vision": {"img_size": 32, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2},
    "text": {"vocab_size": len(BERT_VOCABULARY) + 2, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
             "intermediate_size": 96},
    "image_size": 32,
}  # fmt: skip
IMAGE_REWARD_FULL = {
    "vision": {"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "text": {"vocab_size": 30524, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
             "intermediate_size": 3072},
    "image_size": 224,
}  # fmt: skip


def enter(folder: Path, package: str) -> None:
    """Makes a package importable without running its own `__init__`, which imports far more than the network."""
    sys.path.insert(0, str(folder))
    module = types.ModuleType(package)
    module.__path__ = [str(folder / package)]
    sys.modules[package] = module


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def record_image_reward(originals: Path, sizes: dict[str, Any], count: int) -> dict[str, Any]:
    """Scores by the original class, its `score` and its modules."""
    enter(originals / "image_reward", "ImageReward")
    blip = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    original = importlib.import_module("ImageReward.ImageReward")

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = BertTokenizer.from_pretrained(save_bert(Path(folder)))
        tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
        blip.init_tokenizer = lambda: tokenizer
        blip.create_vit = lambda *arguments: (vit.VisionTransformer(**sizes["vision"]), sizes["vision"]["embed_dim"])
        settings = Path(folder) / "med_config.json"
        common = {"add_cross_attention": True, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512}
        settings.write_text(json.dumps(sizes["text"] | common))
        model = original.ImageReward(str(settings)).eval()
    model.mlp = original.MLP(sizes["text"]["hidden_size"]).eval()
    model.preprocess = original._transform(sizes["image_size"])
    model.load_state_dict(formula_state(shapes(model)), strict=True)
    with torch.no_grad():
        scores = [model.score(prompt, Image.fromarray(image)) for image, prompt in pairs(count)]
    return {"made_by": "image-reward 1.5", "shapes": shapes(model), "scores": scores}


def record_clip_rewards(originals: Path) -> dict[str, Any]:
    """CLIPScore and PickScore by open_clip, HPSv2 by hpsv2, the aesthetic score by open_clip and image-reward's head."""
    enter(originals / "open_clip", "open_clip")
    modeling, tokenizing = importlib.import_module("open_clip.model"), importlib.import_module("open_clip.tokenizer")
    enter(originals / "image_reward", "ImageReward")
    head = importlib.import_module("ImageReward.models.AestheticScore").MLP(CLIP["embed_dim"]).eval()
    head.load_state_dict(formula_state(shapes(head)))

    def build(quick_gelu: bool) -> torch.nn.Module:
        model = modeling.CLIP(
            CLIP["embed_dim"],
            modeling.CLIPVisionCfg(**CLIP["vision_cfg"]),
            modeling.CLIPTextCfg(**CLIP["text_cfg"]),
            quick_gelu,
        ).eval()
        model.load_state_dict(formula_state(shapes(model)), strict=True)
        return model

    prepare = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizing.SimpleTokenizer(str(save_bpe(Path(folder) / "bpe.gz")), context_length=24)
    scores: dict[str, list[float]] = {"clip_score": [], "pick_score": [], "aesthetic": []}
    openai, laion = build(quick_gelu=True), build(quick_gelu=False)
    for image, prompt in pairs():
        pixels = torch.from_numpy(np.stack(prepare([Image.fromarray(image)])["pixel_values"]))
        tokens = tokenizer([prompt])
        seen, read = openai.encode_image(pixels, normalize=True), openai.encode_text(tokens, normalize=True)
        scores["clip_score"].append(100 * max((seen * read).sum().item(), 0))
        scores["aesthetic"].append(head(seen).item())
        scores["pick_score"].append(laion.get_logits(pixels, tokens)[0].item())
    return {
        "made_by": "open_clip_torch 3.3.0, hpsv2 1.2.0, image-reward 1.5",
        "shapes": shapes(laion),
        "head_shapes": shapes(head),
        "scores": scores | {"hps": record_hps(originals)},
    }


def record_hps(originals: Path) -> list[float]:
    """HPSv2 by the modules, the tokenizer and the image transform of its own package."""
    enter(originals / "hpsv2", "hpsv2")
    path = originals / "hpsv2" / "hpsv2" / "src" / "open_clip"
    for name, folder in (("hpsv2.src", path.parent), ("hpsv2.src.open_clip", path)):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    save_bpe(path / "bpe_simple_vocab_16e6.txt.gz")  # the package lacks its vocabulary, and reads it when imported
    modeling = importlib.import_module("hpsv2.src.open_clip.model")
    tokenizing = importlib.import_module("hpsv2.src.open_clip.tokenizer")
    transform = importlib.import_module("hpsv2.src.open_clip.transform")
    model = modeling.CLIP(
        CLIP["embed_dim"],
        modeling.CLIPVisionCfg(**CLIP["vision_cfg"]),
        modeling.CLIPTextCfg(**CLIP["text_cfg"]),
        output_dict=True,
    ).eval()
    model.load_state_dict(formula_state(shapes(model)), strict=True)
    prepare = transform.image_transform(32, is_train=False, resize_longest_max=True)
    scores = []
    for image, prompt in [*pairs(), (formula_image(0, 40, 40), HPS_PROMPT)]:
        outputs = model(prepare(Image.fromarray(image))[None], tokenizing.tokenize([prompt], context_length=24))
        scores.append((outputs["image_features"] @ outputs["text_features"].T).item())
    return scores


def record_fidelity(originals: Path) -> dict[str, Any]:
    """PSNR and SSIM by scikit-image, which leaves five pixels of border out: given mirrored ones, it sees the whole image."""
    sys.path.insert(0, str(originals / "skimage"))
    metrics = importlib.import_module("skimage.metrics")
    result: dict[str, Any] = {"made_by": "scikit-image 0.26.0", "psnr": [], "ssim": []}
    for pair in fidelity_pairs():
        image, reference = (np.pad(side, ((5, 5), (5, 5), (0, 0)), mode="reflect") for side in pair)
        result["psnr"].append(float(metrics.peak_signal_noise_ratio(pair[1], pair[0], data_range=1.0)))
        result["ssim"].append(
            float(
                metrics.structural_similarity(
                    reference,
                    image,
                    data_range=1.0,
                    channel_axis=2,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
            )
        )
    return result


def fidelity_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images beside themselves with noise from weak to strong, float64 `(height, width, 3)` in [0, 1]."""
    found = []
    for index, share in enumerate((0.01, 0.1, 0.5, 1.0)):
        reference, other = (formula_image(index + offset, 40, 32) / 255 for offset in (0, 100))
        found.append((share * other + (1 - share) * reference, reference))
    return found


RECORDINGS = {
    "image_reward": lambda originals: record_image_reward(originals, IMAGE_REWARD_SMALL, 10),
    "image_reward_full": lambda originals: record_image_reward(originals, IMAGE_REWARD_FULL, 5),
    "clip_rewards": record_clip_rewards,
    "fidelity": record_fidelity,
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("originals", type=Path, help="the folder ORIGINALS of the commands above")
    parser.add_argument("recordings", nargs="*", choices=[*RECORDINGS, []], help="all of them if none is named")
    options = parser.parse_args()
    stubs.install()
    for name in options.recordings or RECORDINGS:
        recording = RECORDINGS[name](options.originals.resolve())
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in recording.items())
        (HERE / f"{name}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        print(f"{name}: {recording.get('scores', recording)}")


if __name__ == "__main__":
    main()
