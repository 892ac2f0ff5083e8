import logging

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from lavis.common.registry import registry
from lavis.models.base_model import all_gather_with_grad, concat_all_gather
from lavis.models.blip2_models.blip2_qformer import Blip2Qformer
from lavis.models.blip_models.blip_outputs import BlipOutput


@registry.register_model("blip2_prompted")
class Blip2Prompted(Blip2Qformer):
    """Prompt tuning: a few more query tokens are learned, and everything else but the heads stays as it is."""

    PRETRAINED_MODEL_CONFIG_DICT = {"tiny": "configs/models/blip2_prompted.yaml"}

    def __init__(self, num_prompts=4, hard_negatives=True, **kwargs):
        super().__init__(**kwargs)
        width = self.Qformer.config.hidden_size
        self.prompt_tokens = nn.Parameter(torch.zeros(1, num_prompts, width))
        self.prompt_tokens.data.normal_(mean=0.0, std=self.Qformer.config.initializer_range)
        self.hard_negatives = hard_negatives
        for param in self.Qformer.parameters():
            param.requires_grad = False
        self.query_tokens.requires_grad = False
        logging.info("prompts: %s, parameters: %s", num_prompts, self.show_n_params())

    def queries(self, batch):
        return torch.cat([self.query_tokens, self.prompt_tokens], dim=1).expand(batch, -1, -1)

    def tokens(self, text):
        return self.tokenizer(text, padding="max_length", truncation=True, max_length=self.max_txt_len,
                              return_tensors="pt").to(self.device)

    def forward_image(self, image):
        image_embeds = self.ln_vision(self.visual_encoder(image))
        image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(image.device)
        output = self.Qformer.bert(query_embeds=self.queries(image.shape[0]), encoder_hidden_states=image_embeds,
                                   encoder_attention_mask=image_atts, return_dict=True)
        return output.last_hidden_state, image_embeds

    def compute_itm(self, image_inputs, text_ids, text_atts):
        queries = self.queries(image_inputs.shape[0])
        query_atts = torch.ones(queries.size()[:-1], dtype=torch.long).to(image_inputs.device)
        output = self.Qformer.bert(text_ids, query_embeds=queries,
                                   attention_mask=torch.cat([query_atts, text_atts], dim=1),
                                   encoder_hidden_states=image_inputs,
                                   encoder_attention_mask=torch.ones(image_inputs.shape[:2], dtype=torch.long),
                                   return_dict=True)
        hidden = output.last_hidden_state[:, :queries.size(1), :]
        return self.itm_head(hidden).mean(dim=1)

    def similarities(self, image_feats, text_feat):
        return torch.einsum("iqd,td->itq", image_feats, text_feat).max(dim=-1)[0] / self.temp

    def forward(self, samples):
        image, text = samples["image"], samples["text_input"]
        with self.maybe_autocast():
            states, image_embeds = self.forward_image(image)
        tokens = self.tokens(text)
        text_output = self.Qformer.bert(tokens.input_ids, attention_mask=tokens.attention_mask, return_dict=True)
        image_feats = F.normalize(self.vision_proj(states), dim=-1)
        text_feat = F.normalize(self.text_proj(text_output.last_hidden_state[:, 0, :]), dim=-1)

        sims = self.similarities(image_feats, concat_all_gather(text_feat))
        bs = image.size(0)
        targets = torch.arange(dist.get_rank() * bs, dist.get_rank() * bs + bs).to(image.device)
        loss_itc = F.cross_entropy(sims, targets, label_smoothing=0.1)

        with torch.no_grad():
            weights = F.softmax(sims[:, :bs], dim=1) + 1e-4
            weights.fill_diagonal_(0)
            picked = torch.multinomial(weights, 1).squeeze(1) if self.hard_negatives else torch.arange(bs).roll(1)
        ids = torch.cat([tokens.input_ids, tokens.input_ids[picked]])
        atts = torch.cat([tokens.attention_mask, tokens.attention_mask[picked]])
        embeds = all_gather_with_grad(image_embeds) if dist.get_world_size() > 1 else image_embeds
        logits = self.compute_itm(torch.cat([embeds[:bs], embeds[:bs]]), ids, atts)
        labels = torch.cat([torch.ones(bs, dtype=torch.long), torch.zeros(bs, dtype=torch.long)]).to(image.device)
        loss_itm = F.cross_entropy(logits, labels)
        return BlipOutput(loss=loss_itc + loss_itm, loss_itc=loss_itc, loss_itm=loss_itm)

    @torch.no_grad()
    def extract(self, samples):
        states, _ = self.forward_image(samples["image"])
        tokens = self.tokens(samples["text_input"])
        text = self.Qformer.bert(tokens.input_ids, attention_mask=tokens.attention_mask, return_dict=True)
        return (F.normalize(self.vision_proj(states), dim=-1),
                F.normalize(self.text_proj(text.last_hidden_state[:, 0, :]), dim=-1))

    @classmethod
    def from_config(cls, cfg):
        model = cls(
            vit_model=cfg.get("vit_model", "eva_clip_g"),
            img_size=cfg.get("image_size"),
            drop_path_rate=cfg.get("drop_path_rate", 0),
            use_grad_checkpoint=cfg.get("use_grad_checkpoint", False),
            vit_precision=cfg.get("vit_precision", "fp16"),
            freeze_vit=cfg.get("freeze_vit", True),
            num_query_token=cfg.get("num_query_token"),
            cross_attention_freq=cfg.get("cross_attention_freq", 2),
            embed_dim=cfg.get("embed_dim", 256),
            max_txt_len=cfg.get("max_txt_len", 32),
            num_prompts=cfg.get("num_prompts", 4),
            hard_negatives=cfg.get("hard_negatives", True),
        )
        model.load_checkpoint_from_config(cfg)
        return model
