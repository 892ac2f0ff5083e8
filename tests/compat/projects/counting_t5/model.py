import torch
import torch.nn as nn
from lavis.common.registry import registry
from lavis.models.blip2_models.blip2 import disabled_train
from lavis.models.blip2_models.blip2_t5 import Blip2T5


@registry.register_model("blip2_t5_counter")
class Blip2T5Counter(Blip2T5):
    """Visual tokens with a gate, a head that counts, and the usual loss of the language model."""

    PRETRAINED_MODEL_CONFIG_DICT = {"tiny": "configs/models/blip2_t5_counter.yaml"}

    def __init__(
        self,
        vit_model="eva_clip_g",
        img_size=224,
        drop_path_rate=0,
        use_grad_checkpoint=False,
        vit_precision="fp16",
        freeze_vit=True,
        num_query_token=32,
        t5_model="google/flan-t5-xl",
        prompt="",
        max_txt_len=32,
        apply_lemmatizer=False,
        max_count=9,
        count_weight=0.5,
        freeze_qformer=True,
        lr_gate=10.0,
    ):
        super().__init__(vit_model, img_size, drop_path_rate, use_grad_checkpoint, vit_precision, freeze_vit,
                         num_query_token, t5_model, prompt, max_txt_len, apply_lemmatizer)
        if freeze_qformer:
            for _, param in self.Qformer.named_parameters():
                param.requires_grad = False
            self.Qformer = self.Qformer.eval()
            self.Qformer.train = disabled_train
            self.query_tokens.requires_grad = False
        self.gate = nn.Parameter(torch.zeros(self.t5_model.config.hidden_size))
        self.count_head = nn.Linear(self.Qformer.config.hidden_size, max_count + 1)
        self.count_weight = count_weight
        self.lr_gate = lr_gate
        self.seen = None

    def before_training(self, dataset, task_type, **kwargs):
        self.seen = len(dataset)

    def get_optimizer_params(self, weight_decay, lr_scale=1):
        gate = [p for n, p in self.named_parameters() if n == "gate"]
        rest = [p for n, p in self.named_parameters() if n != "gate" and p.requires_grad]
        return [{"params": gate, "weight_decay": 0, "lr_scale": self.lr_gate},
                {"params": rest, "weight_decay": weight_decay, "lr_scale": 1}]

    def encode(self, image):
        with self.maybe_autocast():
            image_embeds = self.ln_vision(self.visual_encoder(image))
        image_embeds = image_embeds.float()
        image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(image.device)
        output = self.Qformer.bert(query_embeds=self.query_tokens.expand(image_embeds.shape[0], -1, -1),
                                   encoder_hidden_states=image_embeds, encoder_attention_mask=image_atts,
                                   return_dict=True)
        tokens = self.t5_proj(output.last_hidden_state) * (1 + torch.tanh(self.gate))
        return tokens, self.count_head(output.last_hidden_state.mean(1))

    def inputs(self, tokens, texts):
        words = self.t5_tokenizer(texts, padding="longest", truncation=True, max_length=self.max_txt_len,
                                  return_tensors="pt").to(tokens.device)
        atts = torch.ones(tokens.size()[:-1], dtype=torch.long).to(tokens.device)
        embeds = self.t5_model.encoder.embed_tokens(words.input_ids)
        return torch.cat([tokens, embeds], dim=1), torch.cat([atts, words.attention_mask], dim=1)

    def forward(self, samples):
        tokens, counts = self.encode(samples["image"])
        with self.maybe_autocast(dtype=torch.bfloat16):
            inputs_embeds, encoder_atts = self.inputs(tokens, samples["text_input"])
            output_tokens = self.t5_tokenizer(samples["answer"], padding="longest", truncation=True,
                                              max_length=self.max_txt_len, return_tensors="pt").to(tokens.device)
            targets = output_tokens.input_ids.masked_fill(
                output_tokens.input_ids == self.t5_tokenizer.pad_token_id, -100)
            outputs = self.t5_model(inputs_embeds=inputs_embeds, attention_mask=encoder_atts,
                                    decoder_attention_mask=output_tokens.attention_mask, return_dict=True,
                                    labels=targets)
        loss_lm = outputs.loss
        loss_count = nn.functional.cross_entropy(counts, samples["count"])
        return {"loss": loss_lm + self.count_weight * loss_count, "loss_lm": loss_lm, "loss_count": loss_count}

    @torch.no_grad()
    def predict_answers(self, samples, num_beams=5, inference_method="generate", max_len=10, min_len=1,
                        num_ans_candidates=128, answer_list=None, prompt="", length_penalty=-1, **kwargs):
        tokens, counts = self.encode(samples["image"])
        text_input = samples["text_input"]
        if isinstance(text_input, str):
            text_input = [text_input]
        if prompt:
            text_input = [prompt.format(question) for question in text_input]
        inputs_embeds, encoder_atts = self.inputs(tokens, text_input)
        outputs = self.t5_model.generate(inputs_embeds=inputs_embeds, attention_mask=encoder_atts, do_sample=False,
                                         num_beams=num_beams, max_new_tokens=max_len, min_length=min_len,
                                         length_penalty=length_penalty)
        texts = self.t5_tokenizer.batch_decode(outputs, skip_special_tokens=True)
        if inference_method == "count":
            numbers = counts.argmax(-1).tolist()
            texts = [answer_list[n] if n < len(answer_list) else t for t, n in zip(texts, numbers, strict=True)]
        return texts

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
            t5_model=cfg.get("t5_model"),
            prompt=cfg.get("prompt", ""),
            max_txt_len=cfg.get("max_txt_len", 32),
            apply_lemmatizer=cfg.get("apply_lemmatizer", False),
            max_count=cfg.counting.get("max_count", 9),
            count_weight=cfg.counting.weight,
            freeze_qformer=cfg.get("freeze_qformer", True),
            lr_gate=cfg.get("lr_gate", 10.0),
        )
        model.load_checkpoint_from_config(cfg)
        return model
