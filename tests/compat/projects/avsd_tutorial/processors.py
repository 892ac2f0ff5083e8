import os

import numpy as np
import torch
from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor
from omegaconf import OmegaConf
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Tokenizer

SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
                  "additional_special_tokens": ["<speaker1>", "<speaker2>", "<cap>", "<video>"]}


@registry.register_processor("gpt_dialogue_text")
class GPTDialogueProcessor(BaseProcessor):
    def __init__(self, max_turns=3, use_caption=True):
        self.max_turns = max_turns
        self.use_caption = use_caption
        self.tokenizer = GPT2Tokenizer.from_pretrained("gpt2")
        self.tokenizer.add_special_tokens(SPECIAL_TOKENS)

    def ids_of(self, text):
        return self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(text))

    def token(self, name):
        return self.tokenizer.convert_tokens_to_ids(name)

    def padding(self, seq, value=None):
        pad = self.tokenizer.pad_token_id if value is None else value
        return pad_sequence(seq, batch_first=True, padding_value=pad)

    def __call__(self, ann):
        pieces = []
        if self.use_caption:
            pieces.append((self.token("<cap>"), self.ids_of(ann["caption"]), False))
        for turn in ann["dialog"][-self.max_turns:]:
            pieces.append((self.token("<speaker1>"), self.ids_of(turn["question"]), False))
            pieces.append((self.token("<speaker2>"), self.ids_of(turn["answer"]), False))
        pieces.append((self.token("<speaker1>"), self.ids_of(ann["question"]), False))
        pieces.append((self.token("<speaker2>"), self.ids_of(ann["answer"]) + [self.tokenizer.eos_token_id], True))
        input_ids, token_type_ids, labels = [self.tokenizer.bos_token_id], [self.token("<cap>")], [-1]
        for speaker, ids, learned in pieces:
            input_ids += [speaker] + ids
            token_type_ids += [speaker] * (len(ids) + 1)
            labels += [-1] + (ids if learned else [-1] * len(ids))
        return {"input_ids": torch.LongTensor(input_ids), "token_type_ids": torch.LongTensor(token_type_ids),
                "labels": torch.LongTensor(labels)}

    @classmethod
    def from_config(cls, cfg=None):
        if cfg is None:
            cfg = OmegaConf.create()
        return cls(max_turns=cfg.get("max_turns", 3), use_caption=cfg.get("use_caption", True))


@registry.register_processor("gpt_dialogue_video")
class GPTVideoFeatureProcessor(BaseProcessor):
    def __init__(self, visual_ft, audio_ft):
        self.visual_ft = visual_ft
        self.audio_ft = audio_ft
        self.tokenizer = GPT2Tokenizer.from_pretrained("gpt2")
        self.tokenizer.add_special_tokens(SPECIAL_TOKENS)

    def padding(self, seq):
        return pad_sequence(seq, batch_first=True, padding_value=1.0)

    def get_attention_mask(self, seq):
        return torch.sum(seq != 1, dim=2) != 0

    def __call__(self, ft_root, vname):
        features = [np.load(os.path.join(ft_root, name, f"{vname}.npy")) for name in self.visual_ft + self.audio_ft]
        shortest = min(len(one) for one in features)
        item = torch.FloatTensor(np.concatenate([one[:shortest] for one in features], axis=1))
        video = self.tokenizer.convert_tokens_to_ids("<video>")
        return {"video_fts": item, "token_type_ids": torch.LongTensor([video] * len(item))}

    @classmethod
    def from_config(cls, cfg=None):
        if cfg is None:
            cfg = OmegaConf.create()
        return cls(visual_ft=list(cfg.get("visual_ft", ["i3d_rgb"])), audio_ft=list(cfg.get("audio_ft", ["vggish"])))
