"""An 88M-parameter Mixtral-shaped model (28M active) on the default corpus.

python train.py --config=configs/small.py --workdir=runs/small
"""

from configs import base
from moejax.config import Run


def config() -> Run:
    return base.small()
