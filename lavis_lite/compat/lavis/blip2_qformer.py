"""LAVIS' stage-1 models, for subclasses that call their constructor and use their parts.

The parts have LAVIS' names; losses and features are computed by this package's stage-1 model over the same parameters.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from lavis_lite.checkpoints.formats.key_maps import from_lavis
from lavis_lite.compat.lavis.base_model import BaseModel
from lavis_lite.compat.lavis.blip2 import Blip2Base
from lavis_lite.compat.lavis.blip2_llm import LavisBlip2LLM
from lavis_lite.compat.lavis.paths import types_of
from lavis_lite.compat.lavis.retrieval import compute_sim_matrix
from lavis_lite.compat.lavis.sizes import current
from lavis_lite.errors import ContractError
from lavis_lite.models.blip2 import stage1
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer

OWN = ("lavis_lite.compat.lavis.", "torch.nn.")


def _of_core(name: str) -> Any:
    """The method of this package's stage-1 model, called on `core`."""
    method = getattr(stage1.Blip2Qformer, name)

    @functools.wraps(method)
    def call(self: Blip2Qformer, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.core, name)(*args, **kwargs)

    return call


class Blip2Qformer(Blip2Base):
    """Stage 1: visual_encoder, ln_vision, Qformer, query_tokens, vision_proj, text_proj, itm_head and temp."""

    PRETRAINED_MODEL_CONFIG_DICT = types_of("blip2")
    in_batch_negatives = True

    def __init__(self, vit_model: str = "eva_clip_g", img_size: int = 224, drop_path_rate: float = 0,
                 use_grad_checkpoint: Any = False, vit_precision: str = "fp16", freeze_vit: bool = True,
                 num_query_token: int = 32, cross_attention_freq: int = 2, embed_dim: int = 256,
                 max_txt_len: int = 32) -> None:
        BaseModel.__init__(self)
        self.tokenizer = self.init_tokenizer()
        self.add_encoder(vit_model, img_size, drop_path_rate, use_grad_checkpoint, vit_precision, freeze_vit)
        width: Any = self.visual_encoder.num_features
        self.Qformer, self.query_tokens = self.init_Qformer(num_query_token, width, cross_attention_freq)
        self.Qformer.resize_token_embeddings(len(self.tokenizer))
        start_queries_as_text(self.Qformer)
        hidden = self.Qformer.config.hidden_size
        self.vision_proj, self.text_proj = nn.Linear(hidden, embed_dim), nn.Linear(hidden, embed_dim)
        self.itm_head = nn.Linear(hidden, 2)
        self.temp = nn.Parameter(torch.tensor(stage1.INITIAL_TEMPERATURE))
        self.max_txt_len = max_txt_len
        self.__dict__["tokenizer_name"] = current().tokenizer

    from_config = LavisBlip2LLM.__dict__["from_config"]

    @property
    def core(self) -> stage1.Blip2Qformer:
        """This package's stage-1 model over the parameters of this one.

        Raises:
            ContractError: the Q-Former was taken apart.
        """
        model: stage1.Blip2Qformer | None = self.__dict__.get("core_model")
        if model is None:
            model = self.__dict__["core_model"] = self._make_core()
        present = [(name, id(parameter)) for name, parameter in self.named_parameters()]
        if self.__dict__.get("shared") != present:
            share_parameters(self, model)
            self.__dict__["shared"] = present
        return model.train(self.training)

    def _make_core(self) -> stage1.Blip2Qformer:
        config, encoder = self.Qformer.config, self.visual_encoder.__dict__["keeper"]
        encoder.frozen = self.freeze_vit
        tokenizer = TextTokenizer(self.__dict__["tokenizer_name"], self.max_txt_len)
        with torch.device("meta"):
            qformer = QFormer(QFormerConfig(
                config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size,
                config.vocab_size, config.max_position_embeddings, self.query_tokens.shape[1],
                config.cross_attention_freq, config.encoder_width, config.hidden_dropout_prob))
            return stage1.Blip2Qformer(encoder, qformer, tokenizer, embed_dim=self.vision_proj.out_features,
                                       freeze_vit=self.freeze_vit)

    def compute_sim_matrix(self, data_loader: Any, task_cfg: Any) -> tuple[Any, Any]:
        """Scores of all images with all texts, and of all texts with all images."""
        return compute_sim_matrix(self, data_loader, k_test=task_cfg.get("k_test", 128))

    forward = _of_core("forward")
    loss_terms = _of_core("loss_terms")
    forward_image = _of_core("forward_image")
    forward_text = _of_core("forward_text")
    compute_itm = _of_core("compute_itm")
    extract_features = _of_core("extract_features")
    score_candidates = _of_core("score_candidates")
    generate = _of_core("generate")


class Blip2ITM(Blip2Qformer):
    """Stage 1 that answers with matching: `model(samples, match_head="itm" | "itc")`."""

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> Any:
        """Logits float[B,2] (itm), or cosine similarities float[B,1] (itc)."""
        return stage1.Blip2ImageTextMatching.forward(self.core, samples, match_head)  # type: ignore[arg-type]


def start_queries_as_text(qformer: nn.Module) -> None:
    """Copy the text's feed-forward layers to those of the queries."""
    state = qformer.state_dict()
    for name, parameter in qformer.named_parameters():
        if "_query" in name:
            parameter.data.copy_(state[name.replace("_query", "")])


def share_parameters(model: Blip2Qformer, core: nn.Module) -> None:
    """Give `core`, a model with this package's names, the parameters of `model`.

    Raises:
        ContractError: `core` has one that the model has not, or the Q-Former has other modules than it was made of.
    """
    kinds = [type(module) for module in model.Qformer.modules()]
    foreign = [kind.__name__ for kind in kinds if not kind.__module__.startswith(OWN)]
    wanted = {name for name, _ in core.named_parameters() if not name.startswith("vision_encoder.")}
    given = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("visual_encoder."):
            given.update(dict.fromkeys(from_lavis({name: parameter}).tensors, parameter))
    if foreign or wanted - given.keys():
        part = foreign[0] if foreign else sorted(wanted - given.keys())[0]
        raise ContractError(f"{type(model).__name__}: its Q-Former was taken apart ({part}), so the losses of stage 1 "
                            "cannot be computed for it. Define the method that was called in the class itself.")
    for name in wanted:
        owner, _, leaf = name.rpartition(".")
        core.get_submodule(owner)._parameters[leaf] = given[name]
