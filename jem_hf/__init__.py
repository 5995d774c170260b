"""Joint energy-based models for images with many attributes, on Hugging Face."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .curation.framing import find_crop
from .curation.tagging import Tagger
from .data.loading import load_attribute_dataset
from .data.tensors import AttributeStream, AttributeTensors, encode_dataset
from .hub.zoo import CARDS, DEFAULT_MODEL, list_models, model_info
from .models.configuration_jem import JemConfig
from .models.image_processing_jem import JemImageProcessor
from .models.modeling_jem import JemModel, JemOutput
from .models.pipeline_jem import AttributeConditionalGenerationPipeline
from .training.arguments import JemTrainingArguments
from .training.trainer import JemTrainer
from .version import __version__

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
    "CARDS",
    "DEFAULT_MODEL",
    "AttributeConditionalGenerationPipeline",
    "AttributeStream",
    "AttributeTensors",
    "JemConfig",
    "JemImageProcessor",
    "JemModel",
    "JemOutput",
    "JemTrainer",
    "JemTrainingArguments",
    "Tagger",
    "__version__",
    "encode_dataset",
    "find_crop",
    "list_models",
    "load_attribute_dataset",
    "model_info",
]
