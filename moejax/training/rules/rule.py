"""What rules of training have in common."""

from typing import Protocol


class Rule(Protocol):
    """What training does to parameters beside AdamW: a frozen dataclass in `optim.rules`."""

    def around(self, optimizer, specs, steps: int):
        """An optimizer (optax) for a run of so many steps that does it with, before or after `optimizer`.

        `update` takes `apply` as that of `training.optimizer.make` does. A dict `metrics` of numbers in the
        state is reported with every step.
        """
        ...
