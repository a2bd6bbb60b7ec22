"""open_clip's CLIP weights on transformers' `CLIPModel` (the format of HPSv2)."""

import re
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from ada.rewards.loading import Origin, count_layers, load_strictly, read_tensors, shape_of

_RENAMED = (
    (r"logit_scale$", "logit_scale"),
    (r"text_projection\.weight$", "text_projection"),
    (r"visual_projection\.weight$", "visual.proj"),
    (r"text_model\.embeddings\.token_embedding\.weight$", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight$", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"(text|vision)_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"\1resblocks.\2.ln_\3."),
    (r"(text|vision)_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"\1resblocks.\2.mlp.c_fc."),
    (r"(text|vision)_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"\1resblocks.\2.mlp.c_proj."),
    (r"(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"\1resblocks.\2.attn.out_proj."),
    (r"(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.", r"\1resblocks.\2.attn.in_proj_"),
)
_TOWERS = {"text": "transformer.", "vision": "visual.transformer."}


def origin(name: str) -> Origin:
    """Where open_clip keeps a parameter of `CLIPModel`: the projections transposed, queries, keys and values in one."""
    for ours, theirs in _RENAMED:
        if re.match(ours, name):
            key = re.sub(ours, theirs, name)
            break
    else:
        raise AssertionError(f"the parameter {name} has no original")
    for tower, prefix in _TOWERS.items():
        key = key.replace(f"{tower}resblocks", f"{prefix}resblocks") if key.startswith(f"{tower}res") else key
    if name in ("text_projection.weight", "visual_projection.weight"):
        return Origin(key, lambda tensor: tensor.T.contiguous())
    third = re.search(r"self_attn\.([qkv])_proj", name)
    if third:
        part = "qkv".index(third[1])
        return Origin(key, lambda tensor: tensor.chunk(3)[part].clone())
    return Origin(key)


def load_open_clip(path: Path, num_heads: int, activation: str = "gelu") -> CLIPModel:
    """Builds the `CLIPModel` that a file of open_clip's keys describes, and fills it.

    Args:
        path: a state dict, alone or under `state_dict`.
        num_heads: attention heads of both towers, which no shape tells.
        activation: `gelu`, or `quick_gelu` for weights trained with OpenAI's approximation.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape.
    """
    tensors = read_tensors(path, nested="state_dict")
    source = str(path)

    def shape(key: str) -> torch.Size:
        return shape_of(tensors, key, source)

    width, _, patch, _ = shape("visual.conv1.weight")
    vocabulary, text_width = shape("token_embedding.weight")
    common = {"num_attention_heads": num_heads, "hidden_act": activation}
    config = CLIPConfig(
        text_config=common
        | {
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "intermediate_size": shape("transformer.resblocks.0.mlp.c_fc.weight")[0],
            "num_hidden_layers": count_layers(tensors, "transformer.resblocks."),
            "max_position_embeddings": shape("positional_embedding")[0],
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        vision_config=common
        | {
            "hidden_size": width,
            "intermediate_size": shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0],
            "num_hidden_layers": count_layers(tensors, "visual.transformer.resblocks."),
            "image_size": round((shape("visual.positional_embedding")[0] - 1) ** 0.5) * patch,
            "patch_size": patch,
        },
        projection_dim=shape("text_projection")[1],
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    load_strictly(model, tensors, {name: origin(name) for name in model.state_dict()}, source=source)
    return model
