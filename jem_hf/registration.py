"""Makes transformers know our classes, and these the zoo: after the import of what looks for them, not before."""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


def _register_config(auto):
    from .configuration_jem import JemConfig

    auto.AutoConfig.register("jem", JemConfig)


def _register_model(auto):
    from .configuration_jem import JemConfig
    from .modeling_jem import JemModel

    auto.AutoModel.register(JemConfig, JemModel)
    auto.AutoModelForImageClassification.register(JemConfig, JemModel)


def _register_image_processor(auto):
    from .configuration_jem import JemConfig
    from .image_processing_jem import JemImageProcessor

    auto.AutoImageProcessor.register(JemConfig, fast_image_processor_class=JemImageProcessor)


def _register_pipeline(pipelines):
    from .pipeline_jem import AttributeConditionalGenerationPipeline
    from .zoo import CARDS, DEFAULT_MODEL

    pipelines.PIPELINE_REGISTRY.register_pipeline(
        "attribute-conditional-generation",
        pipeline_class=AttributeConditionalGenerationPipeline,
        pt_model=pipelines.AutoModel,
        default={"model": (str(CARDS / DEFAULT_MODEL), "main")} if CARDS else None,
        type="multimodal",
    )


def _connect_zoo(hub):
    import_module(".zoo", __package__)  # it tells `OnHub`


# by the modules that they follow; in the order of their needs
REGISTRATIONS = {
    "jem_hf.hub_jem": _connect_zoo,
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.pipelines": _register_pipeline,
}


class _Registrar(MetaPathFinder):
    """Finds these modules and our own as Python does, and registers when the outermost of them is imported."""

    def __init__(self):
        self.pending = dict(REGISTRATIONS)
        self.num_loading = 0

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in REGISTRATIONS and not fullname.startswith(f"{__package__}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module):
            self.num_loading += 1
            try:
                load(module)
            finally:
                self.num_loading -= 1
            self.register()

        spec.loader.exec_module = load_and_register
        return spec

    def register(self):
        for name in REGISTRATIONS:
            if self.num_loading == 0 and name in self.pending and name in sys.modules:
                self.pending.pop(name)(sys.modules[name])


def install() -> None:
    """Register with what is imported already, and with the rest when it is."""
    registrar = _Registrar()
    sys.meta_path.insert(0, registrar)
    registrar.register()
