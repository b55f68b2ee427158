"""The smallest whole run, for tests and for trying things out.

python train.py --config=configs/tiny.py --workdir=runs/tiny
"""

from configs import base
from moejax.config import Run


def config() -> Run:
    return base.tiny()
