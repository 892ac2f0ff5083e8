"""Stage 2 written out by a project: a language model in float16 with tokens added, an image prompt, trained in part."""

import torch
import torch.nn as nn
from lavis.common.registry import registry
from lavis.models.blip2_models.blip2 import Blip2Base, disabled_train
from transformers import AutoModelForCausalLM, AutoTokenizer


@registry.register_model("own_vicuna")
class OwnVicuna(Blip2Base):
    PRETRAINED_MODEL_CONFIG_DICT = {}

    def __init__(self, vit_model, img_size, vit_precision, num_query_token, llm_model, max_txt_len=32):
        super().__init__()
        self.tokenizer = self.init_tokenizer(truncation_side="left")
        self.visual_encoder, self.ln_vision = self.init_vision_encoder(vit_model, img_size, 0, False, vit_precision)
        self.visual_encoder.requires_grad_(False).eval().train = disabled_train
        self.Qformer, self.query_tokens = self.init_Qformer(num_query_token, self.visual_encoder.num_features)
        self.Qformer.resize_token_embeddings(len(self.tokenizer))
        self.Qformer.cls = None
        self.llm_tokenizer = AutoTokenizer.from_pretrained(llm_model, use_fast=False, truncation_side="left")
        self.llm_model = AutoModelForCausalLM.from_pretrained(llm_model, torch_dtype=torch.float16)
        self.llm_tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        self.llm_tokenizer.add_special_tokens({"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"})
        self.llm_model.resize_token_embeddings(len(self.llm_tokenizer))
        for _, param in self.llm_model.named_parameters():
            param.requires_grad = False
        self.llm_proj = nn.Linear(self.Qformer.config.hidden_size, self.llm_model.config.hidden_size)
        self.max_txt_len = max_txt_len

    def look(self, image, text):
        with self.maybe_autocast():
            image_embeds = self.ln_vision(self.visual_encoder(image))
        query_tokens = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
        tokens = self.tokenizer(text, padding="longest", truncation=True, max_length=self.max_txt_len,
                                return_tensors="pt").to(image.device)
        query_atts = torch.ones(query_tokens.size()[:-1], dtype=torch.long).to(image.device)
        output = self.Qformer.bert(tokens.input_ids, attention_mask=torch.cat([query_atts, tokens.attention_mask], 1),
                                   query_embeds=query_tokens, encoder_hidden_states=image_embeds, return_dict=True)
        return self.llm_proj(output.last_hidden_state[:, :query_tokens.size(1), :])

    def forward(self, samples):
        vectors = self.look(samples["image"], ["describe"] * len(samples["text_input"]))
        self.llm_tokenizer.padding_side = "right"
        text = self.llm_tokenizer([one + self.llm_tokenizer.eos_token for one in samples["text_input"]],
                                  return_tensors="pt", padding="longest", truncation=True,
                                  max_length=self.max_txt_len).to(vectors.device)
        targets = text.input_ids.masked_fill(text.input_ids == self.llm_tokenizer.pad_token_id, -100)
        atts = torch.ones(vectors.size()[:-1], dtype=torch.long).to(vectors.device)
        words = self.llm_model.get_input_embeddings()(text.input_ids)
        with self.maybe_autocast():
            outputs = self.llm_model(inputs_embeds=torch.cat([vectors, words], dim=1),
                                     attention_mask=torch.cat([atts, text.attention_mask], dim=1), return_dict=True,
                                     labels=torch.cat([atts * 0 - 100, targets], dim=1))
        return {"loss": outputs.loss}

    @torch.no_grad()
    def generate(self, samples, use_nucleus_sampling=False, num_beams=5, max_length=256, min_length=1, **options):
        vectors = self.look(samples["image"], ["describe"] * len(samples["image"]))
        outputs = self.llm_model.generate(inputs_embeds=vectors, do_sample=use_nucleus_sampling, num_beams=num_beams,
                                          max_new_tokens=max_length, min_length=min_length)
        return [text.strip() for text in self.llm_tokenizer.batch_decode(outputs, skip_special_tokens=True)]

    @classmethod
    def from_config(cls, cfg):
        model = cls(cfg.get("vit_model", "eva_clip_g"), cfg.get("image_size"), cfg.get("vit_precision", "fp16"),
                    cfg.get("num_query_token"), cfg.get("llm_model"), cfg.get("max_txt_len", 32))
        model.load_checkpoint_from_config(cfg)
        return model
