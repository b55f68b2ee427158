"""The import table: every module belongs to one layer, and each layer names the layers it may use."""

# The longest matching prefix decides.
LAYER_OF = {
    "pallas_kernels": "kernels",
    "pallas_kernels.varying": "manual_axes",
    "moejax.dims": "settings",
    "moejax.errors": "settings",
    "moejax.values": "settings",
    "moejax.records": "settings",
    "moejax.config": "settings",
    "moejax.overrides": "settings",
    "moejax.flags": "settings",
    "moejax.durable": "settings",
    "moejax.chat_template": "text",
    "moejax.chat_worker": "text",
    "moejax.tokenizer": "text",
    "moejax.report": "report",
    "moejax.quantised": "settings",
    "moejax.sharding": "core",
    "moejax.specs": "core",
    "moejax.seams": "core",
    "moejax.weights": "weights",
    "moejax.ops": "ops",
    "moejax.model": "model",
    # shared by the techniques of one folder
    "moejax.losses.base": "technique_base",
    "moejax.losses.counts": "technique_base",
    "moejax.dispatch.exchange": "technique_base",
    "moejax.dispatch.load": "technique_base",
    "moejax.dispatch.ragged": "technique_base",
    "moejax.dispatch.shards": "technique_base",
    "moejax.dispatch.sort": "technique_base",
    "moejax.routers.score.base": "technique_base",
    "moejax.routers.select.groups": "technique_base",
    "moejax.routers.select.slots": "technique_base",
    "moejax.surgery.seams": "technique_base",
    "moejax.surgery.take": "technique_base",
    "moejax.surgery.score.base": "technique_base",
    "moejax.attention": "technique",
    "moejax.depth": "technique",
    "moejax.dispatch": "technique",
    "moejax.ffn": "technique",
    "moejax.losses": "technique",
    "moejax.routers": "technique",
    "moejax.surgery": "technique",
    "moejax.placement": "technique",
    "moejax.analysis": "analysis",
    "moejax.tracing": "driver",
    "moejax.serving": "driver",
    "moejax.training": "driver",
    "moejax.training.data": "data",
    "moejax.training.rules": "technique",
    "moejax.training.rules.masks": "technique_base",
    "moejax.training.rules.rule": "technique_base",
    "moejax.model_io": "driver",
    "moejax.saved_model": "driver",
    "moejax.compile_cache": "driver",
    "moejax.interop": "driver",
    # a file per family, looked up by name; the rest of the folder is what they share
    "moejax.interop.hf": "family",
    "moejax.interop.hf.directory": "driver",
    "moejax.interop.hf.families": "driver",
    "moejax.interop.hf.family": "driver",
    "moejax.interop.hf.fields": "driver",
    "moejax.interop.hf.tensor_map": "driver",
    # knows the folders of the techniques, imports them only to look a name up
    "moejax.recipes": "recipes",
    "configs": "configs",
    # where everything meets
    "moejax.training.door": "door",
    "moejax.serving.door": "door",
    "moejax.interop.flax": "door",
    "moejax.bench": "door",
    "moejax.analysis.__main__": "door",
    "moejax": "door",
    "train": "door",
    "serve": "door",
}

_LOW = {"settings", "core", "weights", "ops", "kernels"}
MAY_IMPORT = {
    "manual_axes": set(),
    "kernels": {"manual_axes"},
    "settings": set(),
    "recipes": {"settings"},
    "core": {"settings"},
    "weights": {"settings", "core", "kernels"},
    "ops": {"settings", "core", "weights", "kernels"},
    "model": _LOW - {"kernels"},
    "technique_base": _LOW | {"model", "manual_axes"},
    "technique": _LOW - {"kernels"} | {"model", "technique_base", "manual_axes"},
    "text": {"settings"},
    "data": {"settings", "text"},
    "report": {"settings"},
    "analysis": {"settings", "report"},
    "driver": _LOW - {"kernels"}
    | {"model", "technique_base", "text", "data", "report", "analysis", "recipes"},
    "family": {"settings", "ops", "driver", "technique"},
    "configs": {"settings", "technique"},
    "door": _LOW
    | {"model", "technique", "technique_base", "text", "data", "report", "analysis", "driver", "recipes"}
    | {"family", "configs"},
}
# Modules of these layers may not import one another, only themselves.
APART = {"technique"}


def layer(module: str) -> str:
    """The layer of a module, `moejax.ops.norm`; KeyError for a module that the table forgot."""
    prefix = module
    while prefix not in LAYER_OF:
        if "." not in prefix:
            raise KeyError(f"{module} has no layer; give its folder one in {__file__}")
        prefix = prefix.rpartition(".")[0]
    return LAYER_OF[prefix]
