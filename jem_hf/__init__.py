"""Joint energy-based models for images with many attributes, on Hugging Face."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_jem import JemConfig
from .data import load_attribute_dataset
from .image_processing_jem import JemImageProcessor
from .modeling_jem import JemModel, JemOutput
from .pipeline_jem import AttributeConditionalGenerationPipeline
from .tensors import AttributeStream, AttributeTensors, encode_dataset
from .zoo import CARDS, DEFAULT_MODEL, list_models, model_info

__version__ = "0.1.0"

AutoConfig.register("jem", JemConfig)
AutoModel.register(JemConfig, JemModel)
AutoModelForImageClassification.register(JemConfig, JemModel)
AutoImageProcessor.register(JemConfig, fast_image_processor_class=JemImageProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "attribute-conditional-generation",
    pipeline_class=AttributeConditionalGenerationPipeline,
    pt_model=AutoModel,
    default={"model": (str(CARDS / DEFAULT_MODEL), "main")} if CARDS else None,
    type="multimodal",
)

__all__ = [
    "AttributeConditionalGenerationPipeline",
    "AttributeStream",
    "AttributeTensors",
    "JemConfig",
    "JemImageProcessor",
    "JemModel",
    "JemOutput",
    "JemTrainer",
    "JemTrainingArguments",
    "encode_dataset",
    "list_models",
    "load_attribute_dataset",
    "model_info",
]


def __getattr__(name):
    """The trainer is imported when it is used: it is heavy."""
    if name == "JemTrainer":
        from .trainer import JemTrainer

        return JemTrainer
    if name == "JemTrainingArguments":
        from .training_args import JemTrainingArguments

        return JemTrainingArguments
    raise AttributeError(f"module 'jem_hf' has no attribute {name!r}")
