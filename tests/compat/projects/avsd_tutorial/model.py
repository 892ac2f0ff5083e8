import torch
import torch.nn as nn
from lavis.common.registry import registry
from lavis.models.base_model import BaseModel
from torch.nn import CrossEntropyLoss, MSELoss
from transformers import GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions


@registry.register_model("gpt_dialogue")
class GPTDialogue(GPT2LMHeadModel, BaseModel):
    PRETRAINED_MODEL_CONFIG_DICT = {"base": "configs/models/gpt_dialogue_base.yaml"}

    def __init__(self, config, len_video_ft=4224):
        super().__init__(config)
        self.video_ff = nn.Linear(len_video_ft, config.n_embd)
        self.video_ff_out = nn.Linear(config.n_embd, len_video_ft)
        self.post_init()

    def forward(self, samples):
        words = self.transformer.wte(samples["input_ids"])
        frames = self.video_ff(samples["video_fts"])
        outputs = self.transformer(inputs_embeds=torch.cat([frames, words], dim=1),
                                   attention_mask=samples["attn_mask"], token_type_ids=samples["token_type_ids"])
        hidden = outputs[0]
        logits = self.lm_head(hidden)
        labels = samples["labels"]
        text_loss = CrossEntropyLoss(ignore_index=-1)(logits[:, :-1].reshape(-1, logits.size(-1)),
                                                      labels[:, 1:].reshape(-1))
        length = samples["video_fts"].size(1)
        video_loss = MSELoss()(self.video_ff_out(hidden[:, :length - 1]), samples["video_fts"][:, 1:])
        return CausalLMOutputWithCrossAttentions(loss=text_loss + video_loss, logits=logits)

    @classmethod
    def from_config(cls, cfg):
        model = cls.from_pretrained("gpt2", len_video_ft=cfg["len_video_ft"])
        model.resize_token_embeddings(cfg["len_tokenizer"])
        return model
