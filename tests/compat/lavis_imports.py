"""What LAVIS' own files import from `lavis`, as facts: file or folder -> "module: names".

Families of models outside of this package (ALBEF, ALPRO, BLIP, CLIP, GPT, PNP-VQA, BLIP-Diffusion, X-InstructBLIP) are
left out, names that their files share with BLIP-2 are not.
"""

from __future__ import annotations

IMPORTS = {
    "docs, README": """
        lavis.models: load_model_and_preprocess load_model load_preprocess model_zoo
        lavis.models.base_model: BaseModel
        lavis.models.gpt_models.gpt_dialogue: GPTDialogue
        lavis.datasets.builders: load_dataset dataset_zoo
        lavis.datasets.builders.base_dataset_builder: BaseDatasetBuilder
        lavis.datasets.builders.dialogue_builder: AVSDDialBuilder
        lavis.datasets.datasets.base_dataset: BaseDataset
        lavis.datasets.datasets.dialogue_datasets: DialogueDataset DialogueEvalDataset
        lavis.datasets.datasets.avsd_dialogue_datasets: AVSDDialDataset AVSDDialEvalDataset
        lavis.processors: load_processor BaseProcessor
        lavis.processors.base_processor: BaseProcessor
        lavis.processors.blip_processors: BlipImageTrainProcessor BlipImageEvalProcessor BlipCaptionProcessor
        lavis.processors.gpt_processors: GPTVideoFeatureProcessor GPTDialogueProcessor
        lavis.tasks: setup_task
        lavis.tasks.base_task: BaseTask
        lavis.tasks.dialogue: DialogueTask
        lavis.common.registry: registry
        lavis.common.utils: get_abs_path
    """,
    "notebooks and demos of BLIP-2": """
        lavis.models: load_model_and_preprocess load_model load_preprocess
        lavis.processors: load_processor
        lavis.common.registry: registry
    """,
    "train.py, evaluate.py": """
        lavis.tasks: *
        lavis.models: *
        lavis.processors: *
        lavis.runners: * RunnerBase RunnerIter
        lavis.runners.runner_base: RunnerBase
        lavis.datasets.builders: *
        lavis.common.config: Config
        lavis.common.dist_utils: get_rank init_distributed_mode
        lavis.common.logger: setup_logger
        lavis.common.optims: LinearWarmupCosineLRScheduler LinearWarmupStepLRScheduler ConstantLRScheduler
        lavis.common.optims: cosine_lr_schedule step_lr_schedule warmup_lr_schedule
        lavis.common.registry: registry
        lavis.common.utils: now load_yaml load_json is_abs get_abs_path get_cache_path makedir get_file_size
    """,
    "lavis/models/blip2_models": """
        lavis.common: dist_utils
        lavis.common.dist_utils: download_cached_file
        lavis.common.utils: is_url
        lavis.common.logger: MetricLogger
        lavis.common.registry: registry
        lavis.models.base_model: BaseModel all_gather_with_grad concat_all_gather
        lavis.models.blip2_models.Qformer: BertConfig BertLMHeadModel
        lavis.models.blip2_models.blip2: Blip2Base compute_sim_matrix disabled_train LayerNorm
        lavis.models.blip2_models.blip2_qformer: Blip2Qformer
        lavis.models.blip2_models.blip2_opt: Blip2OPT
        lavis.models.blip2_models.blip2_t5: Blip2T5
        lavis.models.blip2_models.blip2_t5_instruct: Blip2T5Instruct
        lavis.models.blip2_models.blip2_vicuna_instruct: Blip2VicunaInstruct
        lavis.models.blip2_models.blip2_image_text_matching: Blip2ITM
        lavis.models.blip2_models.modeling_t5: T5Config T5ForConditionalGeneration
        lavis.models.blip2_models.modeling_opt: OPTForCausalLM OPTConfig
        lavis.models.blip2_models.modeling_llama: LlamaForCausalLM
        lavis.models.blip_models.blip_outputs: BlipOutput BlipOutputFeatures
        lavis.models.eva_vit: create_eva_vit_g
        lavis.models.clip_vit: create_clip_vit_L
    """,
    "lavis/tasks": """
        lavis.common: dist_utils
        lavis.common.dist_utils: get_rank get_world_size is_main_process is_dist_avail_and_initialized main_process
        lavis.common.logger: MetricLogger SmoothedValue
        lavis.common.registry: registry
        lavis.common.vqa_tools.vqa: VQA
        lavis.common.vqa_tools.vqa_eval: VQAEval
        lavis.datasets.data_utils: prepare_sample
        lavis.tasks.base_task: BaseTask
        lavis.tasks.captioning: CaptionTask
        lavis.tasks.image_text_pretrain: ImageTextPretrainTask
        lavis.tasks.multimodal_classification: MultimodalClassificationTask
        lavis.tasks.retrieval: RetrievalTask
        lavis.tasks.vqa: VQATask GQATask AOKVQATask
        lavis.tasks.vqa_reading_comprehension: VQARCTask GQARCTask
        lavis.tasks.dialogue: DialogueTask
    """,
    "lavis/processors": """
        lavis.common.registry: registry
        lavis.datasets.data_utils: load_video
        lavis.processors: transforms_video functional_video
        lavis.processors.base_processor: BaseProcessor
        lavis.processors.alpro_processors: AlproVideoTrainProcessor AlproVideoEvalProcessor
        lavis.processors.blip_processors: BlipImageTrainProcessor Blip2ImageTrainProcessor BlipImageEvalProcessor
        lavis.processors.blip_processors: BlipCaptionProcessor BlipImageBaseProcessor
        lavis.processors.clip_processors: ClipImageTrainProcessor ClipImageEvalProcessor
        lavis.processors.instruction_text_processors: BlipInstructionProcessor
        lavis.processors.randaugment: RandomAugment VideoRandomAugment
    """,
    "lavis/runners": """
        lavis.common.dist_utils: download_cached_file get_rank get_world_size is_main_process main_process
        lavis.common.registry: registry
        lavis.common.utils: is_url
        lavis.datasets.data_utils: concat_datasets reorg_datasets_by_split
        lavis.datasets.datasets.dataloader_utils: IterLoader MultiIterLoader PrefetchLoader
        lavis.runners.runner_base: RunnerBase
        lavis.runners.runner_iter: RunnerIter
    """,
    "lavis/datasets": """
        lavis.common: dist_utils utils
        lavis.common.dist_utils: is_dist_avail_and_initialized is_main_process
        lavis.common.registry: registry
        lavis.common.utils: get_cache_path get_abs_path
        lavis.datasets.builders.base_dataset_builder: BaseDatasetBuilder load_dataset_config
        lavis.datasets.data_utils: concat_datasets extract_archive
        lavis.datasets.datasets.base_dataset: BaseDataset ConcatDataset
        lavis.datasets.datasets.caption_datasets: CaptionDataset CaptionEvalDataset CaptionInstructDataset
        lavis.datasets.datasets.coco_caption_datasets: COCOCapDataset COCOCapEvalDataset
        lavis.datasets.datasets.image_text_pair_datasets: ImageTextPairDataset ImageTextPairInstructDataset
        lavis.datasets.datasets.retrieval_datasets: RetrievalDataset RetrievalEvalDataset
        lavis.datasets.datasets.video_vqa_datasets: VideoQADataset
        lavis.datasets.datasets.multimodal_classification_datasets: MultimodalClassificationDataset
        lavis.datasets.datasets.vqa_datasets: VQADataset VQAEvalDataset
        lavis.datasets.datasets.dialogue_datasets: DialogueDataset DialogueEvalDataset
        lavis.processors.base_processor: BaseProcessor
    """,
}


def pairs() -> dict[str, list[tuple[str, str]]]:
    """File or folder -> (module, name)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for where, text in IMPORTS.items():
        rows = [line.strip().partition(": ") for line in text.strip().splitlines()]
        found[where] = [(module, name) for module, _, names in rows for name in names.split()]
    return found
