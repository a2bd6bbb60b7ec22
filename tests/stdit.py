"""A model that is not diffusers': Open-Sora's STDiT, small."""

from torch import Tensor, nn

from blockdance import BlockLayout

LAYOUT = BlockLayout(lists=("blocks",), latents="x", cond_last=False, per_image_arguments=frozenset({"mask"}))


class STDiTBlock(nn.Module):
    """Open-Sora 1.0's block: spatial attention, temporal attention and cross-attention in one."""

    def __init__(self, width: int, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.spatial, self.temporal, self.cross = (nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, y: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        batch, _, width = x.shape
        modulated = x + t[:, None]
        frames = modulated.view(batch * self.num_frames, -1, width)
        x = x + self.spatial(frames, frames, frames)[0].reshape(batch, -1, width)
        patches = x.view(batch, self.num_frames, -1, width).transpose(1, 2).reshape(-1, self.num_frames, width)
        change = self.temporal(patches, patches, patches)[0]
        x = x + change.view(batch, -1, self.num_frames, width).transpose(1, 2).reshape(batch, -1, width)
        x = x + self.cross(x, y, y, key_padding_mask=mask == 0)[0]
        return x + self.mlp(x)


class STDiT(nn.Module):
    """With Open-Sora's interface: a list `blocks`, latents `x` `(batch, channels, frames, height, width)`, prompts `y` with a row for
    every branch and image, and a `mask` with a row for every image, which the model repeats."""

    def __init__(self, num_blocks: int = 4, width: int = 16, num_frames: int = 3) -> None:
        super().__init__()
        self.x_embedder, self.t_embedder = nn.Linear(4, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(STDiTBlock(width, num_frames) for _ in range(num_blocks))
        self.final_layer = nn.Linear(width, 4)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        if len(mask) != len(y):
            mask = mask.repeat(len(y) // len(mask), 1)
        hidden = self.x_embedder(x.flatten(2).transpose(1, 2))
        t = self.t_embedder(timestep[:, None])
        for block in self.blocks:
            hidden = block(hidden, y, t, mask)
        return self.final_layer(hidden).transpose(1, 2).view_as(x)
