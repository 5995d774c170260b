"""Joint energy-based models for images with many attributes, on Hugging Face."""

from importlib import import_module

from . import registration

__version__ = "0.1.0"

_MODULES = {
    "configuration_jem": ["JemConfig"],
    "data": ["load_attribute_dataset"],
    "image_processing_jem": ["JemImageProcessor"],
    "modeling_jem": ["JemModel", "JemOutput"],
    "pipeline_jem": ["AttributeConditionalGenerationPipeline"],
    "tensors": ["AttributeStream", "AttributeTensors", "encode_dataset"],
    "trainer": ["JemTrainer"],
    "training_args": ["JemTrainingArguments"],
    "zoo": ["CARDS", "DEFAULT_MODEL", "list_models", "model_info"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)

registration.install()


def __getattr__(name):
    """Import what is asked for, and nothing before: torch and transformers take seconds."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jem_hf' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})
