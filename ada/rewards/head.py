"""The head that ImageReward and the LAION aesthetic predictor share."""

from torch import Tensor, nn

LAYERS = ("0", "2", "4", "6", "7")
"""Names of the linear layers in both published files; the numbers between were dropouts."""


class LinearHead(nn.Module):
    """Five linear layers without activations between them.

    Args:
        widths: of the input and of every layer's output.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = zip(LAYERS, widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleDict({name: nn.Linear(inputs, outputs) for name, inputs, outputs in pairs})

    def forward(self, features: Tensor) -> Tensor:
        """Features `(images, width)` to scores `(images,)`."""
        for layer in self.layers.values():
            features = layer(features)
        return features.squeeze(-1)
