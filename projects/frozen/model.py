"""Frozen (arXiv 2106.13884): an image is a prefix of a few vectors in front of a frozen language model's text."""

from collections.abc import Sequence

from torch import Tensor, nn

from lavis_lite.models.connectors.base import Connector, positive
from lavis_lite.models.vision.encoder import Encoder
from lavis_lite.registry import registry
from lavis_lite.torchvision_shim import ensure_torchvision


@registry.register_connector("prefix")
class Prefix(Connector):
    """The mean of all features, mapped to `vectors` vectors by one linear layer (section 3.1)."""

    def __init__(self, features: int | None, feature_width: int, width: int, *, vectors: int = 2) -> None:
        super().__init__(features, feature_width, width)
        positive(vectors=vectors)
        self.tokens, self.projection = vectors, nn.Linear(feature_width, vectors * width)

    def forward(self, features: Tensor, mask: Tensor | None = None, texts: Sequence[str] | None = None) -> Tensor:
        """float[B,P,Dv] and, of padded features, bool[B,P] -> float[B,vectors,D]."""
        seen = features.new_ones(features.shape[:2]) if mask is None else mask.to(features)
        pooled = (features * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return self.projection(pooled).unflatten(-1, (self.tokens, self.width))


@registry.register_encoder("convolutions")
class Convolutions(Encoder):
    """A convolutional network of timm without its head, such as nf_resnet50: float[B,3,H,W] -> float[B,1,Dv]."""

    num_tokens, trains = 1, True

    def __init__(self, name: str = "nf_resnet50") -> None:
        super().__init__()
        ensure_torchvision()
        import timm  # loads torchvision

        self.net = timm.create_model(name, num_classes=0)
        self.width = self.net.num_features

    def forward(self, image: Tensor) -> Tensor:
        """float[B,3,H,W] -> float[B,1,Dv]."""
        return self.net(image)[:, None]
