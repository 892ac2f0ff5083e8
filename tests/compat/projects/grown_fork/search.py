import logging

import numpy as np
import torch
import torch.nn.functional as F
from lavis.common.dist_utils import is_main_process
from lavis.common.registry import registry
from lavis.models.blip2_models.blip2 import Blip2Base, compute_sim_matrix, disabled_train
from lavis.tasks.base_task import BaseTask
from torch import nn


@registry.register_model("blip2")
class Blip2Qformer(Blip2Base):
    PRETRAINED_MODEL_CONFIG_DICT = {
        "pretrain": "configs/models/blip2/blip2_pretrain.yaml",
        "coco": "configs/models/blip2/blip2_coco.yaml",
    }

    def __init__(self, vit_model="eva_clip_g", img_size=224, vit_precision="fp16", freeze_vit=True,
                 num_query_token=32, cross_attention_freq=2, embed_dim=256, max_txt_len=32):
        super().__init__()
        self.tokenizer = self.init_tokenizer()
        self.visual_encoder, self.ln_vision = self.init_vision_encoder(vit_model, img_size, 0, False, vit_precision)
        if freeze_vit:
            for _, param in self.visual_encoder.named_parameters():
                param.requires_grad = False
            self.visual_encoder = self.visual_encoder.eval()
            self.visual_encoder.train = disabled_train
            logging.info("freeze vision encoder")
        self.Qformer, self.query_tokens = self.init_Qformer(num_query_token, self.visual_encoder.num_features,
                                                            cross_attention_freq)
        self.Qformer.resize_token_embeddings(len(self.tokenizer))
        state_dict = self.Qformer.state_dict()
        for name, param in self.Qformer.named_parameters():
            if "_query" in name:
                param.data.copy_(state_dict[name.replace("_query", "")])
        width = self.Qformer.config.hidden_size
        self.vision_proj, self.text_proj = nn.Linear(width, embed_dim), nn.Linear(width, embed_dim)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(0.07 * torch.ones([]))
        self.max_txt_len = max_txt_len

    def forward_image(self, image):
        image_embeds = self.ln_vision(self.visual_encoder(image))
        image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(image.device)
        query_output = self.Qformer.bert(query_embeds=self.query_tokens.expand(image_embeds.shape[0], -1, -1),
                                         encoder_hidden_states=image_embeds, encoder_attention_mask=image_atts,
                                         return_dict=True)
        return query_output.last_hidden_state, image_embeds

    def forward_text(self, text_tokens):
        return self.Qformer.bert(text_tokens.input_ids, attention_mask=text_tokens.attention_mask,
                                 return_dict=True).last_hidden_state[:, 0, :]

    def compute_itm(self, image_inputs, text_ids, text_atts):
        image_atts = torch.ones(image_inputs.size()[:-1], dtype=torch.long).to(image_inputs.device)
        query_tokens = self.query_tokens.expand(image_inputs.shape[0], -1, -1)
        query_atts = torch.ones(query_tokens.size()[:-1], dtype=torch.long).to(image_inputs.device)
        output = self.Qformer.bert(text_ids, query_embeds=query_tokens,
                                   attention_mask=torch.cat([query_atts, text_atts], dim=1),
                                   encoder_hidden_states=image_inputs, encoder_attention_mask=image_atts,
                                   return_dict=True)
        return self.itm_head(output.last_hidden_state[:, : query_tokens.size(1), :])[:, :, 1].mean(dim=1)

    def forward(self, samples):
        text = self.tokenizer(samples["text_input"], padding="max_length", truncation=True,
                              max_length=self.max_txt_len, return_tensors="pt").to(self.device)
        image = F.normalize(self.vision_proj(self.forward_image(samples["image"])[0]), dim=-1)
        sim = torch.einsum("iqd,td->itq", image, F.normalize(self.text_proj(self.forward_text(text)), dim=-1))
        return {"loss": F.cross_entropy(sim.max(-1)[0] / self.temp, torch.arange(len(image), device=self.device))}

    @classmethod
    def from_config(cls, cfg):
        model = cls(vit_model=cfg.get("vit_model", "eva_clip_g"), img_size=cfg.get("image_size"),
                    vit_precision=cfg.get("vit_precision", "fp16"), num_query_token=cfg.get("num_query_token"),
                    embed_dim=cfg.get("embed_dim", 256), max_txt_len=cfg.get("max_txt_len", 32))
        model.load_checkpoint_from_config(cfg)
        return model

    def compute_sim_matrix(self, data_loader, task_cfg):
        return compute_sim_matrix(model=self, data_loader=data_loader, k_test=task_cfg.k_test)


@registry.register_task("retrieval")
class RetrievalTask(BaseTask):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg

    @classmethod
    def setup_task(cls, cfg):
        return cls(cfg=cfg.run_cfg)

    def evaluation(self, model, data_loader, **kwargs):
        score_i2t, score_t2i = model.compute_sim_matrix(data_loader, task_cfg=self.cfg)
        eval_result = None
        if is_main_process():
            found = np.argsort(score_i2t, axis=1)[:, ::-1][:, 0]
            right = [found[image] in texts for image, texts in data_loader.dataset.img2txt.items()]
            eval_result = {"txt_r1": 100.0 * sum(right) / len(right), "texts": score_t2i.shape[0]}
            eval_result["agg_metrics"] = eval_result["txt_r1"]
        return eval_result

    def after_evaluation(self, val_result, **kwargs):
        return val_result
