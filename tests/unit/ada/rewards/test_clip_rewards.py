"""CLIPScore, PickScore, HPSv2 and the aesthetic score against open_clip and the original packages (`tests/golden/record.py`)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_clip_folder
from golden.builders import recorded, save_aesthetic_head, save_clip_model, save_hps
from golden.formula import PROMPTS, formula_image, pairs, to_tensor
from golden.record import HPS_PROMPT
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from ada.rewards import HPS, AestheticScore, ClipScore, PickScore, Reward, WeightsError, load_features


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("clip_rewards")
    paths = {name: folder / name for name in ("openai", "laion", "hps", "head")}
    for path in paths.values():
        path.mkdir()
    save_clip_model(paths["openai"], "quick_gelu")
    save_clip_model(paths["laion"], "gelu")
    save_hps(paths["hps"])
    save_aesthetic_head(paths["head"])
    return {name: str(path) for name, path in paths.items()}


def build(name: str, folders: dict[str, str]) -> Reward:
    return {
        "clip_score": lambda: ClipScore(folders["openai"]),
        "pick_score": lambda: PickScore(folders["laion"], folders["laion"]),
        "hps": lambda: HPS(folders["hps"], folders["hps"]),
        "aesthetic": lambda: AestheticScore(folders["head"], folders["openai"]),
    }[name]()


@pytest.mark.parametrize(
    ("name", "tolerance"), [("clip_score", 2e-3), ("pick_score", 1e-4), ("hps", 2e-5), ("aesthetic", 1e-5)]
)
def test_scores_equal_the_original(name: str, tolerance: float, folders: dict[str, str]) -> None:
    """Ten images of ten sizes; prompts that are ordinary, empty, too long, not ASCII, and for HPS in need of mending."""
    reward = build(name, folders)
    expected = torch.tensor(recorded("clip_rewards")["scores"][name])
    cases = pairs()
    if name == "hps":
        cases.append((formula_image(0, 40, 40), HPS_PROMPT))
    scores = torch.cat([reward(to_tensor(image), [prompt], to_tensor(image)) for image, prompt in cases])
    torch.testing.assert_close(scores, expected, atol=tolerance, rtol=0)
    assert expected.std() > 300 * tolerance, "the scores must vary far more than the tolerance"


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("clip_score", {"model": "openai"}),
        ("pick_score", {"model": "laion", "processor": "laion"}),
        ("hps", {"model": "hps", "tokenizer": "hps"}),
        ("aesthetic", {"head": "head", "model": "openai"}),
    ],
)
def test_a_reward_tells_which_weights_it_has(name: str, held: dict[str, str], folders: dict[str, str]) -> None:
    """Or scores that are kept would be taken for those of other weights."""
    places = {key: folders[place] for key, place in held.items()}
    assert build(name, folders).describe()[1] == places | {"scale": 1.0}


@pytest.mark.parametrize("name", ["clip_score", "pick_score", "hps"])
def test_scores_depend_on_the_prompt(name: str, folders: dict[str, str]) -> None:
    images = to_tensor(formula_image(1, 32, 32)).expand(len(PROMPTS), -1, -1, -1)
    scores = build(name, folders)(images, PROMPTS, images)
    assert scores.std() > 0.02 * scores.abs().max()


def test_a_batch_scores_as_its_images_alone(folders: dict[str, str]) -> None:
    """Repeated prompts are encoded once; each image still meets its own."""
    images = torch.cat([to_tensor(formula_image(index, 40, 32)) for index in range(4)])
    prompts = [PROMPTS[0], PROMPTS[3], PROMPTS[0], PROMPTS[2]]
    reward = PickScore(folders["laion"], folders["laion"])
    alone = torch.cat([reward(images[index][None], [prompt]) for index, prompt in enumerate(prompts)])
    torch.testing.assert_close(reward(images, prompts), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [16, 37])
def test_clip_score_equals_transformers_own_path(side: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """PIL images through the stock processor and model give the same score as tensors through ours, with T5's tokenizer too."""
    clip_folder = str(build_clip_folder(tmp_path_factory.mktemp("clip")))
    pixels = torch.randint(0, 256, (3, 3, side, 24), dtype=torch.uint8)
    prompts = ["a dog", "", "the very long prompt of a text that has to be cut"]
    ours = ClipScore(clip_folder)(pixels / 255, prompts)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder), AutoTokenizer.from_pretrained(clip_folder)
    pictures = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in pixels]
    inputs = CLIPImageProcessorPil.from_pretrained(clip_folder)(pictures, return_tensors="pt")
    text = tokenizer(prompts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, input_ids=text.input_ids, attention_mask=text.attention_mask).logits_per_image
        expected = 100 * (logits.diagonal() / model.logit_scale.exp()).clamp(min=0)
    torch.testing.assert_close(ours, expected, atol=0.02, rtol=0)  # one step of 1/255 in a pixel moves it by this
    assert ours.std() > 0.1


def test_missing_scorer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No scorer in"):
        ClipScore(str(tmp_path / "none"))


def test_the_same_clip_is_loaded_once(folders: dict[str, str]) -> None:
    assert ClipScore(folders["openai"]).features is AestheticScore(folders["head"], folders["openai"]).features


def test_left_over_keys_of_hps_are_named(folders: dict[str, str], tmp_path: Path) -> None:
    state = torch.load(Path(folders["hps"]) / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    state["visual.surplus"] = torch.zeros(1)
    del state["visual.proj"]
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"1 missing: visual\.proj; 1 left over: visual\.surplus"):
        HPS(str(tmp_path / "odd.pt"), folders["hps"])


def test_embeddings_are_those_of_the_loaded_clip(folders: dict[str, str]) -> None:
    features = load_features(folders["openai"])
    images = torch.cat([to_tensor(formula_image(index, 32, 32)) for index in range(2)])
    assert torch.allclose(features.embed_images(images).norm(dim=-1), torch.ones(2))
    assert features.embed_prompts(["a", "b", "a"]).shape == (3, 32)
    assert features.logit_scale == pytest.approx(CLIPModel.from_pretrained(folders["openai"]).logit_scale.exp().item())
