"""Train a model: `python train.py --config=configs/default.py --workdir=runs/default`."""

import sys

from moejax.flags import main
from moejax.training.door import PROGRAM

if __name__ == "__main__":
    sys.exit(main(PROGRAM))
