"""Stage 1 written out by a project: its own losses over the parts, torch.distributed called directly."""

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from lavis.common.registry import registry
from lavis.models.base_model import all_gather_with_grad, concat_all_gather
from lavis.models.blip2_models.blip2 import Blip2Base, disabled_train
from lavis.models.blip_models.blip_outputs import BlipOutput


@registry.register_model("own_stage1")
class OwnStage1(Blip2Base):
    PRETRAINED_MODEL_CONFIG_DICT = {}

    def __init__(self, vit_model, img_size, vit_precision, num_query_token, embed_dim=16, max_txt_len=16):
        super().__init__()
        self.tokenizer = self.init_tokenizer()
        self.visual_encoder, self.ln_vision = self.init_vision_encoder(vit_model, img_size, 0, False, vit_precision)
        for _, param in self.visual_encoder.named_parameters():
            param.requires_grad = False
        self.visual_encoder = self.visual_encoder.eval()
        self.visual_encoder.train = disabled_train
        self.Qformer, self.query_tokens = self.init_Qformer(num_query_token, self.visual_encoder.num_features, 2)
        self.Qformer.resize_token_embeddings(len(self.tokenizer))
        state_dict = self.Qformer.state_dict()
        for name, param in self.Qformer.named_parameters():
            if "_query" in name:
                param.data.copy_(state_dict[name.replace("_query", "")])
        self.vision_proj = nn.Linear(self.Qformer.config.hidden_size, embed_dim)
        self.text_proj = nn.Linear(self.Qformer.config.hidden_size, embed_dim)
        self.itm_head = nn.Linear(self.Qformer.config.hidden_size, 2)
        self.temp = nn.Parameter(0.07 * torch.ones([]))
        self.max_txt_len = max_txt_len

    def forward(self, samples):
        image, text = samples["image"], samples["text_input"]
        image_embeds = self.ln_vision(self.visual_encoder(image))
        image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(image.device)
        query_tokens = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
        query_output = self.Qformer.bert(query_embeds=query_tokens, encoder_hidden_states=image_embeds,
                                         encoder_attention_mask=image_atts, use_cache=True, return_dict=True)
        image_feats = F.normalize(self.vision_proj(query_output.last_hidden_state), dim=-1)
        tokens = self.tokenizer(text, padding="max_length", truncation=True, max_length=self.max_txt_len,
                                return_tensors="pt").to(image.device)
        text_output = self.Qformer.bert(tokens.input_ids, attention_mask=tokens.attention_mask, return_dict=True)
        text_feat = F.normalize(self.text_proj(text_output.last_hidden_state[:, 0, :]), dim=-1)

        sim_i2t = torch.einsum("bqd,td->btq", image_feats, concat_all_gather(text_feat)).max(-1).values / self.temp
        rank, bs = dist.get_rank(), image.size(0)
        targets = torch.linspace(rank * bs, rank * bs + bs - 1, bs, dtype=int).to(image.device)
        loss_itc = F.cross_entropy(sim_i2t, targets, label_smoothing=0.1)

        assert dist.get_world_size() == 1 or len(all_gather_with_grad(image_embeds)) > bs
        query_atts = torch.ones(query_tokens.size()[:-1], dtype=torch.long).to(image.device)
        output_itm = self.Qformer.bert(tokens.input_ids, query_embeds=query_tokens,
                                       attention_mask=torch.cat([query_atts, tokens.attention_mask], dim=1),
                                       encoder_hidden_states=image_embeds, encoder_attention_mask=image_atts,
                                       return_dict=True)
        logits = self.itm_head(output_itm.last_hidden_state[:, :query_tokens.size(1), :]).mean(dim=1)
        loss_itm = F.cross_entropy(logits, torch.ones(bs, dtype=torch.long))

        decoder_input_ids = tokens.input_ids.clone()
        decoder_input_ids[:, 0] = self.tokenizer.bos_token_id
        labels = decoder_input_ids.masked_fill(decoder_input_ids == self.tokenizer.pad_token_id, -100)
        lm_output = self.Qformer(decoder_input_ids, attention_mask=torch.cat([query_atts, tokens.attention_mask], 1),
                                 past_key_values=query_output.past_key_values, return_dict=True, labels=labels)
        return BlipOutput(loss=loss_itc + loss_itm + lm_output.loss, loss_itc=loss_itc, loss_itm=loss_itm,
                          loss_lm=lm_output.loss)

    @torch.no_grad()
    def generate(self, samples, use_nucleus_sampling=False, num_beams=3, max_length=30, min_length=10, top_p=0.9):
        image = samples["image"]
        image_embeds = self.ln_vision(self.visual_encoder(image))
        if not use_nucleus_sampling:
            image_embeds = image_embeds.repeat_interleave(num_beams, dim=0)
        else:
            num_beams = 1
        image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(image.device)
        input_ids = torch.LongTensor(image.size(0), 1).fill_(self.tokenizer.bos_token_id).to(image.device)
        outputs = self.Qformer.generate(
            input_ids=input_ids, query_embeds=self.query_tokens.expand(image_embeds.shape[0], -1, -1),
            max_length=max_length, min_length=min_length, num_beams=num_beams, do_sample=use_nucleus_sampling,
            top_p=top_p, eos_token_id=self.tokenizer.sep_token_id, pad_token_id=self.tokenizer.pad_token_id,
            encoder_hidden_states=image_embeds, encoder_attention_mask=image_atts)
        return self.tokenizer.batch_decode(outputs, skip_special_tokens=True)

    @classmethod
    def from_config(cls, cfg):
        model = cls(cfg.get("vit_model", "eva_clip_g"), cfg.get("image_size"), cfg.get("vit_precision", "fp16"),
                    cfg.get("num_query_token"), cfg.get("embed_dim", 16), cfg.get("max_txt_len", 16))
        model.load_checkpoint_from_config(cfg)
        return model
