"""moejax: train, study and serve mixture-of-experts language models in JAX.

    model = moejax.load("runs/default")
    print(moejax.generate(model, ["def main("], max_tokens=64)[0].text)

    run = configs.base.tiny()
    params = moejax.init(jax.random.key(0), run.model)
    logits = moejax.forward(params, run.model, [[1, 104, 105]]).logits
    moejax.train(run, "runs/tiny")

Importing moejax imports nothing else; the first use of a function does.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Model",
    "RoutingTrace",
    "TraceRecorder",
    "__version__",
    "chat",
    "forward",
    "generate",
    "init",
    "load",
    "routing_trace",
    "save",
    "train",
]

if TYPE_CHECKING:
    from moejax.api import (
        Completion,
        Model,
        RoutingTrace,
        TraceRecorder,
        chat,
        forward,
        generate,
        init,
        load,
        routing_trace,
        save,
        train,
    )


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'moejax' has no attribute {name!r}; it has {', '.join(__all__)}")
    from moejax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
