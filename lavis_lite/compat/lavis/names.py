"""Which names of LAVIS there are here: module of LAVIS -> name -> "module:attribute" of this package.

A target that begins with a dot is in this room; "module:" alone is the module itself.
"""

from __future__ import annotations

HOME = "lavis_lite.compat.lavis"
BLIP2 = "lavis.models.blip2_models."


def _all(target: str, *names: str) -> dict[str, str]:
    return {name: f"{target}:{name}" for name in names}


_MODELS = {
    **_all(".base_model", "BaseModel"),
    **_all(".blip2", "Blip2Base"),
    **_all(".blip2_qformer", "Blip2Qformer", "Blip2ITM"),
    **_all(".blip2_llm", "Blip2OPT", "Blip2T5", "Blip2T5Instruct", "Blip2VicunaInstruct"),
}
_ZOO = {**_all(".base_model", "load_model", "load_model_and_preprocess"),
        **_all("lavis_lite.zoo", "load_preprocess", "model_zoo")}
_TASKS = {
    **_all(".tasks", "BaseTask", "setup_task"),
    **_all(".task_classes", "CaptionTask", "VQATask", "GQATask", "AOKVQATask", "ImageTextPretrainTask", "RetrievalTask",
           "MultimodalClassificationTask", "DialogueTask"),
}
_IMAGE_PROCESSORS = ("BlipImageBaseProcessor", "BlipImageTrainProcessor", "Blip2ImageTrainProcessor",
                     "BlipImageEvalProcessor", "BlipCaptionProcessor", "BlipQuestionProcessor")
_CLIP_PROCESSORS = ("ClipImageTrainProcessor", "ClipImageEvalProcessor")
_VIDEO_PROCESSORS = ("AlproVideoTrainProcessor", "AlproVideoEvalProcessor")
_DIST = {
    "get_rank": "lavis_lite.distributed:rank", "get_world_size": "lavis_lite.distributed:world_size",
    "is_main_process": "lavis_lite.distributed:is_main",
    **_all(".utils", "get_dist_info", "is_dist_avail_and_initialized", "main_process", "init_distributed_mode"),
    **_all(".base_model", "download_cached_file"),
}
_DATA_UTILS = {
    **_all(".datasets", "apply_to_sample", "move_to_cuda", "prepare_sample", "concat_datasets",
           "reorg_datasets_by_split"),
    **_all(".utils", "load_video", "extract_archive", "MAX_INT"),
}
_REGISTRY = {"registry": ".registry:registry"}
_SCHEDULES = _all(".runners", "LinearWarmupCosineLRScheduler", "LinearWarmupStepLRScheduler", "ConstantLRScheduler")
_DATASETS = {**_all(".datasets", "BaseDataset", "ConcatDataset")}

MODULES: dict[str, dict[str, str]] = {
    "lavis": {**_REGISTRY, **_ZOO},
    "lavis.common": {},
    "lavis.common.registry": {**_REGISTRY, "Registry": ".registry:LavisRegistry"},
    "lavis.common.config": _all(".sections", "Config"),
    "lavis.common.dist_utils": _DIST,
    "lavis.common.utils": {
        **_all(".utils", "now", "is_url", "get_cache_path", "makedir", "load_json", "load_file", "download_url",
               "load_yaml", "get_file_size", "cleanup_dir", "is_convertible_to_int", "download_and_extract_archive"),
        "is_abs": "os.path:isabs", "get_abs_path": ".paths:get_abs_path",
        "registry": _REGISTRY["registry"],
    },
    "lavis.common.logger": _all(".utils", "MetricLogger", "SmoothedValue", "AttrDict", "setup_logger"),
    "lavis.common.optims": {**_SCHEDULES, **_all(".runners", "cosine_lr_schedule", "step_lr_schedule",
                                                 "warmup_lr_schedule")},
    "lavis.common.vqa_tools": {},
    "lavis.common.vqa_tools.vqa": _all(".vqa_tools", "VQA"),
    "lavis.common.vqa_tools.vqa_eval": _all(".vqa_tools", "VQAEval"),
    "lavis.models": {**_MODELS, **_ZOO, **_REGISTRY},
    "lavis.models.base_model": {
        **_all(".base_model", "BaseModel", "BaseEncoder", "concat_all_gather", "tile"),
        **_all("lavis_lite.distributed", "all_gather_with_grad")},
    "lavis.models.blip2_models": {},
    BLIP2 + "blip2": {
        **_all(".blip2", "Blip2Base"), **_all(".vision", "LayerNorm", "disabled_train"),
        **_all(".qformer_layers", "BertConfig"), **_all(".qformer", "BertLMHeadModel"),
        "compute_sim_matrix": ".retrieval:compute_sim_matrix",
    },
    BLIP2 + "blip2_qformer": _all(".blip2_qformer", "Blip2Qformer"),
    BLIP2 + "blip2_image_text_matching": _all(".blip2_qformer", "Blip2ITM"),
    BLIP2 + "blip2_opt": _all(".blip2_llm", "Blip2OPT"),
    BLIP2 + "blip2_t5": _all(".blip2_llm", "Blip2T5"),
    BLIP2 + "blip2_t5_instruct": _all(".blip2_llm", "Blip2T5Instruct"),
    BLIP2 + "blip2_vicuna_instruct": _all(".blip2_llm", "Blip2VicunaInstruct"),
    BLIP2 + "Qformer": {
        **_all(".qformer", "BertLMHeadModel", "BertModel", "BertEncoder"),
        **_all(".qformer_layers", "BertConfig", "BertEmbeddings", "BertLayer", "BertAttention", "BertSelfAttention",
               "BertSelfOutput", "BertIntermediate", "BertOutput", "BertOnlyMLMHead", "BertLMPredictionHead",
               "BertPredictionHeadTransform"),
    },
    BLIP2 + "modeling_opt": _all("transformers", "OPTForCausalLM", "OPTConfig"),
    BLIP2 + "modeling_t5": _all("transformers", "T5ForConditionalGeneration", "T5Config", "T5EncoderModel"),
    BLIP2 + "modeling_llama": _all("transformers", "LlamaForCausalLM", "LlamaConfig"),
    "lavis.models.blip_models": {},
    "lavis.models.blip_models.blip_outputs": {"BlipOutput": "lavis_lite.models.outputs:Blip2Output",
                                              "BlipOutputFeatures": "lavis_lite.models.outputs:Blip2Features"},
    "lavis.models.eva_vit": {
        **_all(".vision", "create_eva_vit_g", "convert_weights_to_fp16"), "Mlp": "timm.layers:Mlp",
        "Attention": "timm.models.eva:EvaAttention", "Block": "timm.models.eva:EvaBlock",
        "VisionTransformer": "timm.models.eva:Eva", "PatchEmbed": "timm.layers:PatchEmbed",
    },
    "lavis.models.clip_vit": _all(".vision", "create_clip_vit_L", "convert_weights_to_fp16"),
    "lavis.processors": {
        **_all(".processors", "BaseProcessor", "load_processor", *_IMAGE_PROCESSORS, *_CLIP_PROCESSORS,
               *_VIDEO_PROCESSORS, "BlipInstructionProcessor"), **_REGISTRY,
    },
    "lavis.processors.base_processor": _all(".processors", "BaseProcessor"),
    "lavis.processors.blip_processors": _all(".processors", *_IMAGE_PROCESSORS),
    "lavis.processors.clip_processors": _all(".processors", *_CLIP_PROCESSORS),
    "lavis.processors.alpro_processors": _all(".processors", *_VIDEO_PROCESSORS, "ToUint8", "ToTHWC"),
    "lavis.processors.instruction_text_processors": _all(".processors", "BlipInstructionProcessor"),
    "lavis.processors.transforms_video": _all(
        "torchvision.transforms._transforms_video", "RandomCropVideo", "RandomResizedCropVideo", "CenterCropVideo",
        "NormalizeVideo", "ToTensorVideo", "RandomHorizontalFlipVideo"),
    "lavis.processors.functional_video": _all("torchvision.transforms._functional_video", "crop", "resize",
                                              "resized_crop", "center_crop", "to_tensor", "normalize", "hflip"),
    "lavis.processors.randaugment": _all(".augment", "RandomAugment", "VideoRandomAugment"),
    "lavis.datasets": {},
    "lavis.datasets.builders": {
        **_all("lavis_lite.datasets.load", "load_dataset", "dataset_zoo"), **_REGISTRY,
        **_all(".builders", "BaseDatasetBuilder", "load_dataset_config"),
    },
    "lavis.datasets.builders.base_dataset_builder": _all(".builders", "BaseDatasetBuilder", "load_dataset_config"),
    "lavis.datasets.datasets": {},
    "lavis.datasets.datasets.base_dataset": _DATASETS,
    "lavis.datasets.datasets.dataloader_utils": _all(".datasets", "IterLoader", "MultiIterLoader", "PrefetchLoader"),
    **{f"lavis.datasets.datasets.{module}": {
        **_all(".dataset_classes", *(f"{name}Dataset" for name in names)),
        "__DisplMixin": ".dataset_classes:DisplMixin"} for module, names in {
           "caption_datasets": ("Caption", "CaptionEval", "CaptionInstruct"),
           "video_caption_datasets": ("VideoCaption", "VideoCaptionEval"),
           "image_text_pair_datasets": ("ImageTextPair", "ImageTextPairInstruct"),
           "retrieval_datasets": ("Retrieval", "RetrievalEval", "VideoRetrieval", "VideoRetrievalEval"),
           "multimodal_classification_datasets": ("MultimodalClassification",),
           "video_vqa_datasets": ("VideoQA",),
           "vqa_datasets": ("VQA", "VQAEval"),
           "coco_vqa_datasets": ("COCOVQA", "COCOVQAEval"),
           "dialogue_datasets": ("Dialogue", "DialogueEval"),
           "avsd_dialogue_datasets": ("AVSDDial", "AVSDDialEval"),
       }.items()},
    "lavis.datasets.datasets.coco_caption_datasets": {
        "COCOCapDataset": ".dataset_classes:CaptionDataset",
        "COCOCapEvalDataset": ".dataset_classes:CaptionEvalDataset",
        **_all(".dataset_classes", "NoCapsEvalDataset")},
    **{f"lavis.datasets.builders.{module}": _all(".builders", *(f"{name}Builder" for name in names))
       for module, names in {
           "caption_builder": ("COCOCap", "Flickr30kCap", "MSRVTTCap", "MSVDCap", "VATEXCap"),
           "retrieval_builder": ("COCORetrieval", "Flickr30k", "MSRVTTRetrieval", "DiDeMoRetrieval"),
           "vqa_builder": ("COCOVQA",),
           "video_qa_builder": ("VideoQA", "MSRVTTQA", "MSVDQA"),
           "dialogue_builder": ("AVSDDial",),
       }.items()},
    "lavis.datasets.data_utils": _DATA_UTILS,
    "lavis.tasks": {**_TASKS, **_REGISTRY},
    "lavis.tasks.base_task": _all(".tasks", "BaseTask"),
    "lavis.tasks.captioning": _all(".task_classes", "CaptionTask"),
    "lavis.tasks.vqa": _all(".task_classes", "VQATask", "GQATask", "AOKVQATask"),
    "lavis.tasks.retrieval": _all(".task_classes", "RetrievalTask"),
    "lavis.tasks.image_text_pretrain": _all(".task_classes", "ImageTextPretrainTask"),
    "lavis.tasks.multimodal_classification": _all(".task_classes", "MultimodalClassificationTask"),
    "lavis.tasks.dialogue": _all(".task_classes", "DialogueTask"),
    "lavis.runners": {**_all(".runners", "RunnerBase", "RunnerIter")},
    "lavis.runners.runner_base": _all(".runners", "RunnerBase"),
    "lavis.runners.runner_iter": _all(".runners", "RunnerIter"),
}
"""every module that can be imported"""

ABSENT = {
    **{f"lavis.models.{family}": "this package has BLIP-2 and InstructBLIP, not this family of models." for family in (
        "albef_models", "alpro_models", "blip_models", "blip_diffusion_models", "clip_models", "gpt_models",
        "img2prompt_models", "pnp_vqa_models", "ulip_models", "beats", "vit", "med", "timesformer")},
    "lavis.common.gradcam": "`lavis_lite.report` draws where a model looks (docs/guide/looking_inside.md).",
    "lavis.processors.gpt_processors": "they prepare features for GPT-2, which is not here. A project may bring "
                                       "them.",
    "lavis.tasks.vqa_reading_comprehension": "it belongs to PNP-VQA. run.task: vqa_reading_comprehension is here "
                                             "another task.",
    "lavis.datasets.builders": "data sets are rows of YAML here: `python -m lavis_lite data list` names them.",
    "lavis.datasets.datasets": "data sets are rows of YAML here; BaseDataset, and those for captions, questions and "
                               "dialogues, may be subclassed.",
}
"""beginning of a module's name -> why it is not there"""
