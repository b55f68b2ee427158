"""Continue texts with a trained model: `python serve.py --model=runs/default --prompt="def main("`."""

import sys

from moejax.flags import main
from moejax.serving.door import PROGRAM

if __name__ == "__main__":
    sys.exit(main(PROGRAM))
