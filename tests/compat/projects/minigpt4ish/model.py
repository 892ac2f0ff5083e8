import logging
import random

import torch
import torch.nn as nn
from lavis.common.registry import registry
from lavis.models.blip2_models.blip2 import Blip2Base, disabled_train
from transformers import AutoModelForCausalLM, AutoTokenizer


@registry.register_model("mini_gpt4ish")
class MiniGPT4ish(Blip2Base):
    PRETRAINED_MODEL_CONFIG_DICT = {"pretrain": "configs/models/minigpt4ish.yaml"}

    def __init__(self, vit_model="eva_clip_g", q_former_model=None, img_size=224, drop_path_rate=0,
                 use_grad_checkpoint=False, vit_precision="fp16", freeze_vit=True, freeze_qformer=True,
                 num_query_token=32, llama_model="", prompt_path="", prompt_template="", max_txt_len=32,
                 end_sym="\n"):
        super().__init__()
        self.tokenizer = self.init_tokenizer()

        self.visual_encoder, self.ln_vision = self.init_vision_encoder(
            vit_model, img_size, drop_path_rate, use_grad_checkpoint, vit_precision)
        if freeze_vit:
            for _, param in self.visual_encoder.named_parameters():
                param.requires_grad = False
            self.visual_encoder = self.visual_encoder.eval()
            self.visual_encoder.train = disabled_train
            for _, param in self.ln_vision.named_parameters():
                param.requires_grad = False
            self.ln_vision = self.ln_vision.eval()
            self.ln_vision.train = disabled_train
            logging.info("freeze vision encoder")

        self.Qformer, self.query_tokens = self.init_Qformer(num_query_token, self.visual_encoder.num_features)
        self.Qformer.cls = None
        self.Qformer.bert.embeddings.word_embeddings = None
        self.Qformer.bert.embeddings.position_embeddings = None
        for layer in self.Qformer.bert.encoder.layer:
            layer.output = None
            layer.intermediate = None
        self.load_from_pretrained(url_or_filename=q_former_model)
        if freeze_qformer:
            for _, param in self.Qformer.named_parameters():
                param.requires_grad = False
            self.Qformer = self.Qformer.eval()
            self.Qformer.train = disabled_train
            self.query_tokens.requires_grad = False
            logging.info("freeze Qformer")

        self.llama_tokenizer = AutoTokenizer.from_pretrained(llama_model, use_fast=False)
        self.llama_tokenizer.pad_token = self.llama_tokenizer.eos_token
        self.llama_model = AutoModelForCausalLM.from_pretrained(llama_model, torch_dtype=torch.float32)
        for _, param in self.llama_model.named_parameters():
            param.requires_grad = False
        self.llama_proj = nn.Linear(self.Qformer.config.hidden_size, self.llama_model.config.hidden_size)
        self.max_txt_len = max_txt_len
        self.end_sym = end_sym

        self.prompt_list = []
        if prompt_path:
            with open(prompt_path) as f:
                raw_prompts = f.read().splitlines()
            filted_prompts = [raw_prompt for raw_prompt in raw_prompts if "<ImageHere>" in raw_prompt]
            self.prompt_list = [prompt_template.format(p) for p in filted_prompts]

    def embed(self, ids):
        return self.llama_model.get_input_embeddings()(ids)

    def encode_img(self, image):
        with self.maybe_autocast():
            image_embeds = self.ln_vision(self.visual_encoder(image)).to(image.device)
            image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(image.device)
            query_tokens = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
            query_output = self.Qformer.bert(query_embeds=query_tokens, encoder_hidden_states=image_embeds,
                                             encoder_attention_mask=image_atts, return_dict=True)
            inputs_llama = self.llama_proj(query_output.last_hidden_state)
        return inputs_llama, torch.ones(inputs_llama.size()[:-1], dtype=torch.long).to(image.device)

    def prompt_wrap(self, img_embeds, atts_img, prompt):
        if not prompt:
            return img_embeds, atts_img
        before, after = prompt.split("<ImageHere>")
        tokens = [self.llama_tokenizer(text, return_tensors="pt", add_special_tokens=False).to(img_embeds.device)
                  for text in (before, after)]
        embeds = [self.embed(one.input_ids).expand(len(img_embeds), -1, -1) for one in tokens]
        wrapped = torch.cat([embeds[0], img_embeds, embeds[1]], dim=1)
        return wrapped, atts_img[:, :1].expand(-1, wrapped.shape[1])

    def forward(self, samples):
        image = samples["image"]
        img_embeds, atts_img = self.encode_img(image)
        if self.prompt_list:
            img_embeds, atts_img = self.prompt_wrap(img_embeds, atts_img, random.choice(self.prompt_list))

        self.llama_tokenizer.padding_side = "right"
        text = [t + self.end_sym for t in samples["text_input"]]
        to_regress = self.llama_tokenizer(text, return_tensors="pt", padding="longest", truncation=True,
                                          max_length=self.max_txt_len, add_special_tokens=False).to(image.device)
        targets = to_regress.input_ids.masked_fill(to_regress.attention_mask == 0, -100)
        empty = torch.full((atts_img.shape[0], atts_img.shape[1] + 1), -100, dtype=torch.long, device=image.device)
        targets = torch.cat([empty, targets], dim=1)

        bos = torch.full_like(to_regress.input_ids[:, :1], self.llama_tokenizer.bos_token_id)
        inputs_embeds = torch.cat([self.embed(bos), img_embeds, self.embed(to_regress.input_ids)], dim=1)
        attention_mask = torch.cat([atts_img[:, :1], atts_img, to_regress.attention_mask], dim=1)
        with self.maybe_autocast():
            outputs = self.llama_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, return_dict=True,
                                       labels=targets)
        return {"loss": outputs.loss}

    @torch.no_grad()
    def answer(self, image, max_new_tokens=8):
        img_embeds, atts = self.encode_img(image)
        ids = self.llama_model.generate(inputs_embeds=img_embeds, attention_mask=atts, max_new_tokens=max_new_tokens,
                                        do_sample=False, pad_token_id=self.llama_tokenizer.eos_token_id)
        return self.llama_tokenizer.batch_decode(ids, skip_special_tokens=True)

    @classmethod
    def from_config(cls, cfg):
        model = cls(
            vit_model=cfg.get("vit_model", "eva_clip_g"), q_former_model=cfg.get("q_former_model"),
            img_size=cfg.get("image_size"), drop_path_rate=cfg.get("drop_path_rate", 0),
            use_grad_checkpoint=cfg.get("use_grad_checkpoint", False),
            vit_precision=cfg.get("vit_precision", "fp16"), freeze_vit=cfg.get("freeze_vit", True),
            freeze_qformer=cfg.get("freeze_qformer", True), num_query_token=cfg.get("num_query_token"),
            llama_model=cfg.get("llama_model"), prompt_path=cfg.get("prompt_path", ""),
            prompt_template=cfg.get("prompt_template", ""), max_txt_len=cfg.get("max_txt_len", 32),
            end_sym=cfg.get("end_sym", "\n"))
        ckpt_path = cfg.get("ckpt", "")
        if ckpt_path:
            ckpt = torch.load(ckpt_path, map_location="cpu")
            model.load_state_dict(ckpt["model"], strict=False)
        return model
