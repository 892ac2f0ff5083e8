import torch
import torch.nn as nn
import torch.nn.functional as F
from lavis.common.registry import registry
from lavis.models.blip2_models.blip2 import disabled_train
from lavis.models.blip2_models.blip2_vicuna_instruct import Blip2VicunaInstruct


def compress(bank, sizes):
    """Join the two neighbours in time that are most alike: [B, T, N, C] -> [B, T - 1, N, C]."""
    similar = F.cosine_similarity(bank[:, :-1].flatten(2), bank[:, 1:].flatten(2), dim=2)
    place = similar.argmax(dim=1)
    kept, counts = [], []
    for row, first in enumerate(place.tolist()):
        weights = sizes[row, first:first + 2]
        joined = (bank[row, first:first + 2] * weights[:, None, None]).sum(0) / weights.sum()
        kept.append(torch.cat([bank[row, :first], joined[None], bank[row, first + 2:]]))
        counts.append(torch.cat([sizes[row, :first], weights.sum()[None], sizes[row, first + 2:]]))
    return torch.stack(kept), torch.stack(counts)


@registry.register_model("blip2_vicuna_instruct_bank")
class Blip2VicunaInstructBank(Blip2VicunaInstruct):
    PRETRAINED_MODEL_CONFIG_DICT = {"vicuna7b": "configs/models/vicuna7b_bank.yaml"}

    def __init__(self, vit_model="eva_clip_g", img_size=224, drop_path_rate=0, use_grad_checkpoint=False,
                 vit_precision="fp16", freeze_vit=True, num_query_token=32, llm_model="", prompt="", max_txt_len=128,
                 max_output_txt_len=256, apply_lemmatizer=False, qformer_text_input=True, memory_bank_length=10,
                 num_frames=20, max_num_frames=120):
        super().__init__(vit_model=vit_model, img_size=img_size, drop_path_rate=drop_path_rate,
                         use_grad_checkpoint=use_grad_checkpoint, vit_precision=vit_precision, freeze_vit=freeze_vit,
                         num_query_token=num_query_token, llm_model=llm_model, prompt=prompt, max_txt_len=max_txt_len,
                         max_output_txt_len=max_output_txt_len, apply_lemmatizer=apply_lemmatizer,
                         qformer_text_input=qformer_text_input)
        self.memory_bank_length = memory_bank_length
        self.num_frames = num_frames
        self.visual_encoder.train = disabled_train
        self.image_pe = nn.Embedding(max_num_frames, self.visual_encoder.num_features)
        nn.init.constant_(self.image_pe.weight, 0.0)

    def look(self, samples, text):
        video = samples["image"]
        batch, _, frames = video.shape[:3]
        tokens = self.tokenizer(text, padding="longest", truncation=True, max_length=self.max_txt_len,
                                return_tensors="pt").to(video.device)
        query_tokens = self.query_tokens.expand(batch, -1, -1)
        query_atts = torch.ones(query_tokens.size()[:-1], dtype=torch.long).to(video.device)
        atts = torch.cat([query_atts, tokens.attention_mask], dim=1)
        bank, sizes = None, None
        for number in range(frames):
            with self.maybe_autocast():
                frame = self.ln_vision(self.visual_encoder(video[:, :, number]))
            frame = frame + self.image_pe.weight[number]
            one = torch.ones(batch, 1, device=video.device)
            bank = frame[:, None] if bank is None else torch.cat([bank, frame[:, None]], dim=1)
            sizes = one if sizes is None else torch.cat([sizes, one], dim=1)
            if bank.size(1) > self.memory_bank_length:
                bank, sizes = compress(bank, sizes)
        seen = bank.flatten(1, 2)
        output = self.Qformer.bert(tokens.input_ids, attention_mask=atts, query_embeds=query_tokens,
                                   encoder_hidden_states=seen,
                                   encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long,
                                                                     device=seen.device), return_dict=True)
        inputs_llm = self.llm_proj(output.last_hidden_state[:, :query_tokens.size(1), :])
        return inputs_llm, torch.ones(inputs_llm.size()[:-1], dtype=torch.long).to(video.device)

    def forward(self, samples):
        inputs_llm, atts_llm = self.look(samples, samples["text_input"])
        device = inputs_llm.device
        self.llm_tokenizer.padding_side = "right"
        self.llm_tokenizer.truncation_side = "left"
        asked = self.llm_tokenizer(samples["text_input"], return_tensors="pt", padding="longest", truncation=True,
                                   max_length=self.max_txt_len).to(device)
        self.llm_tokenizer.truncation_side = "right"
        answers = self.llm_tokenizer([t + self.llm_tokenizer.eos_token for t in samples["text_output"]],
                                     return_tensors="pt", padding="longest", truncation=True,
                                     max_length=self.max_output_txt_len).to(device)
        llm_tokens, lengths = self.concat_text_input_output(asked.input_ids, asked.attention_mask, answers.input_ids,
                                                            answers.attention_mask)
        targets = llm_tokens["input_ids"].masked_fill(llm_tokens["attention_mask"] == 0, -100)
        for i, length in enumerate(lengths):
            targets[i][:length] = -100
        targets = torch.cat([torch.full(atts_llm.size(), -100, dtype=torch.long, device=device), targets], dim=1)
        embeds = self.llm_model.get_input_embeddings()(llm_tokens["input_ids"])
        attention_mask = torch.cat([atts_llm, llm_tokens["attention_mask"]], dim=1)
        with self.maybe_autocast():
            outputs = self.llm_model(inputs_embeds=torch.cat([inputs_llm, embeds], dim=1),
                                     attention_mask=attention_mask, return_dict=True, labels=targets)
        return {"loss": outputs.loss}

    @torch.no_grad()
    def generate(self, samples, use_nucleus_sampling=False, num_beams=5, max_length=256, min_length=1, top_p=0.9,
                 repetition_penalty=1.5, length_penalty=1, num_captions=1, temperature=1):
        self.llm_tokenizer.padding_side = "left"
        prompt = samples["prompt"] if "prompt" in samples else self.prompt
        prompt = [prompt] * samples["image"].size(0) if isinstance(prompt, str) else prompt
        inputs_llm, atts_llm = self.look(samples, prompt)
        asked = self.llm_tokenizer(prompt, padding="longest", return_tensors="pt").to(inputs_llm.device)
        embeds = self.llm_model.get_input_embeddings()(asked.input_ids)
        outputs = self.llm_model.generate(
            inputs_embeds=torch.cat([inputs_llm, embeds], dim=1),
            attention_mask=torch.cat([atts_llm, asked.attention_mask], dim=1), do_sample=use_nucleus_sampling,
            num_beams=num_beams, max_new_tokens=max_length, min_length=min_length,
            repetition_penalty=repetition_penalty, length_penalty=length_penalty, num_return_sequences=num_captions)
        return [text.strip() for text in self.llm_tokenizer.batch_decode(outputs, skip_special_tokens=True)]

    @classmethod
    def from_config(cls, cfg):
        model = cls(
            vit_model=cfg.get("vit_model", "eva_clip_g"), img_size=cfg.get("image_size"),
            drop_path_rate=cfg.get("drop_path_rate", 0), use_grad_checkpoint=cfg.get("use_grad_checkpoint", False),
            vit_precision=cfg.get("vit_precision", "fp16"), freeze_vit=cfg.get("freeze_vit", True),
            num_query_token=cfg.get("num_query_token"), llm_model=cfg.get("llm_model"), prompt=cfg.get("prompt", ""),
            max_txt_len=cfg.get("max_txt_len", 128), max_output_txt_len=cfg.get("max_output_txt_len", 256),
            apply_lemmatizer=cfg.get("apply_lemmatizer", False),
            qformer_text_input=cfg.get("qformer_text_input", True),
            memory_bank_length=cfg.get("memory_bank_length", 10), num_frames=cfg.get("num_frames", 20),
            max_num_frames=cfg.get("max_num_frames", 120))
        model.load_checkpoint_from_config(cfg)
        return model
