import random
import re

from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor
from lavis.processors.blip_processors import BlipImageBaseProcessor
from omegaconf import OmegaConf
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode


@registry.register_processor("two_crops")
class TwoCropsProcessor(BlipImageBaseProcessor):
    """Two views of a picture, as a list."""

    def __init__(self, image_size=384, mean=None, std=None, scales=(0.8, 1.0), views=2):
        super().__init__(mean=mean, std=std)
        self.views = views
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(image_size, scale=tuple(scales), interpolation=InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            self.normalize,
        ])

    def __call__(self, item):
        return [self.transform(item) for _ in range(self.views)]

    @classmethod
    def from_config(cls, cfg=None):
        if cfg is None:
            cfg = OmegaConf.create()
        crop = cfg.get("crop", OmegaConf.create({"scales": [0.8, 1.0]}))
        return cls(image_size=cfg.get("image_size", 384), mean=cfg.get("mean", None), std=cfg.get("std", None),
                   scales=OmegaConf.to_container(crop.scales), views=cfg.get("views", 2))


@registry.register_processor("search_text")
class SearchText(BaseProcessor):
    def __init__(self, prompt="", max_words=50):
        self.prompt = prompt
        self.max_words = max_words

    def __call__(self, caption):
        caption = re.sub(r"[^\w ]", "", caption.lower()).strip()
        words = caption.split(" ")
        if len(words) > self.max_words:
            words = words[:self.max_words]
        if random.random() < 0.5:
            words = [word for word in words if word != "a"]
        return self.prompt + " ".join(words)

    @classmethod
    def from_config(cls, cfg=None):
        cfg = cfg or OmegaConf.create()
        return cls(prompt=cfg.get("prompt", ""), max_words=cfg.get("max_words", 50))
