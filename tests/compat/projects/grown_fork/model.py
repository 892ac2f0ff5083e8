import torch.nn as nn
from lavis.common.registry import registry
from lavis.models.blip2_models import blip2_opt
from lavis.processors.blip_processors import BlipCaptionProcessor as LavisCaptionProcessor


@registry.register_model("blip2_opt")
class Blip2OPT(blip2_opt.Blip2OPT):
    PRETRAINED_MODEL_CONFIG_DICT = {
        "pretrain_opt2.7b": "configs/models/blip2/blip2_pretrain_opt2.7b.yaml",
        "pretrain_opt6.7b": "configs/models/blip2/blip2_pretrain_opt6.7b.yaml",
    }

    def __init__(self, warm_epochs=1, **kwargs):
        super().__init__(**kwargs)
        self.warm_epochs = warm_epochs
        self.query_bias = nn.Parameter(self.query_tokens.detach() * 0)
        self.seen = []

    def forward(self, samples):
        done = samples["epoch"] * samples["num_iters_per_epoch"] + samples["iters"]
        alpha = min(1, done / (self.warm_epochs * samples["num_iters_per_epoch"]))
        self.seen.append((samples["epoch"], samples["iters"], samples["num_iters_per_epoch"]))
        loss = super().forward(samples)["loss"]
        penalty = alpha * (self.query_bias ** 2).mean()
        return {"loss": loss + penalty, "loss_caption": loss.detach(), "loss_alpha": penalty.detach() + alpha}

    @classmethod
    def from_config(cls, cfg):
        model = cls(
            vit_model=cfg.get("vit_model", "eva_clip_g"), img_size=cfg.get("image_size"),
            drop_path_rate=cfg.get("drop_path_rate", 0), use_grad_checkpoint=cfg.get("use_grad_checkpoint", False),
            vit_precision=cfg.get("vit_precision", "fp16"), freeze_vit=cfg.get("freeze_vit", True),
            num_query_token=cfg.get("num_query_token"), opt_model=cfg.get("opt_model"), prompt=cfg.get("prompt", ""),
            max_txt_len=cfg.get("max_txt_len", 32), warm_epochs=cfg.get("warm_epochs", 1))
        model.load_checkpoint_from_config(cfg)
        return model


@registry.register_processor("blip_caption")
class BlipCaptionProcessor(LavisCaptionProcessor):
    def __call__(self, caption):
        return super().__call__(caption) + " indeed"
