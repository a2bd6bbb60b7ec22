"""What the original packages import and their networks do not need, or need little of: put in place before importing them.

The originals ask for timm 0.6, fairscale, torchvision and transformers 4. None of the arithmetic that is recorded lies here, but for
`Resize` and its kin, which hand the work to Pillow as torchvision does.
"""

import sys
import types
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import modeling_utils


class PatchEmbed(nn.Module):
    """timm's: a convolution, its output as a sequence."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Resize(nn.Module):
    """torchvision's on Pillow images: the short side to `size`, the long one truncated."""

    def __init__(self, size: int | tuple[int, int], interpolation: Any = None, **options: Any) -> None:
        super().__init__()
        self.size = size if isinstance(size, int) else size[0]

    def forward(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        long = int(self.size * max(width, height) / min(width, height))
        shape = (self.size, long) if width <= height else (long, self.size)
        return image.resize(shape, Image.Resampling.BICUBIC)


class CenterCrop(nn.Module):
    """torchvision's on Pillow images: the corner rounded to even."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = size if isinstance(size, int) else size[0]

    def forward(self, image: Image.Image) -> Image.Image:
        left, top = (round((length - self.size) / 2) for length in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class ToTensor(nn.Module):
    def forward(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


class Normalize(nn.Module):
    def __init__(self, mean: Any, std: Any) -> None:
        super().__init__()
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


class Compose:
    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


def resize_tensor(image: Tensor, size: Any, interpolation: Any = None, **options: Any) -> Tensor:
    """torchvision's `functional.resize` of a float tensor since 0.17: antialiased, neither rounded nor clamped."""
    return F.interpolate(image[None], tuple(size), mode="bicubic", antialias=True, align_corners=False)[0]


def pad_tensor(image: Tensor, padding: Any, fill: float = 0, **options: Any) -> Tensor:
    left, top, right, bottom = padding
    return F.pad(image, (left, right, top, bottom), value=fill)


def _module(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def _nothing(*arguments: Any, **options: Any) -> Any:
    raise NotImplementedError("a stub: the recorded path must not come here")


def install() -> None:
    """Puts the stand-ins into `sys.modules`, and back into transformers what it dropped."""
    interpolation = types.SimpleNamespace(BICUBIC="bicubic", BILINEAR="bilinear", NEAREST="nearest")
    shapes = {"Compose": Compose, "Resize": Resize, "CenterCrop": CenterCrop, "ToTensor": ToTensor, "Normalize": Normalize}
    functional = types.SimpleNamespace(resize=resize_tensor, pad=pad_tensor)
    _module("torchvision", transforms=types.SimpleNamespace(**shapes, functional=functional))
    _module(
        "torchvision.transforms", **shapes, InterpolationMode=interpolation, RandomResizedCrop=_nothing, functional=functional
    )
    _module("torchvision.transforms.functional", **vars(functional))
    _module("torchvision.ops", misc=None)
    _module("torchvision.ops.misc", FrozenBatchNorm2d=nn.BatchNorm2d)

    _module("timm")
    _module("timm.models")
    _module("timm.models.hub", download_cached_file=_nothing)
    _module("timm.models.vision_transformer", _cfg=_nothing, PatchEmbed=PatchEmbed)
    _module("timm.models.registry", register_model=_nothing)
    _module("timm.models.layers", trunc_normal_=nn.init.trunc_normal_, DropPath=lambda rate: nn.Identity())
    _module("timm.models.helpers", named_apply=_nothing, adapt_input_conv=_nothing)
    _module("fairscale")
    _module("fairscale.nn")
    _module("fairscale.nn.checkpoint")
    _module("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=_nothing)
    _module("clip")

    _module("transformers.file_utils", ModelOutput=transformers.utils.ModelOutput)
    for name in ("find_pruneable_heads_and_indices", "prune_linear_layer"):
        setattr(modeling_utils, name, _nothing)
    modeling_utils.apply_chunking_to_forward = lambda function, size, dimension, *inputs: function(*inputs)
    modeling_utils.PreTrainedModel.get_head_mask = lambda self, mask, layers: [None] * layers
    modeling_utils.PreTrainedModel.init_weights = lambda self: None
    modeling_utils.PreTrainedModel.invert_attention_mask = _invert_mask


def _invert_mask(self: nn.Module, mask: Tensor) -> Tensor:
    """transformers 4's: 1 and 0 to what is added to attention scores."""
    return (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
