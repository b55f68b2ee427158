"""Training gives the numbers that it gave."""

import json

from tests.golden import losses


def test_twenty_losses_of_the_tiny_recipe():
    want = [float(x) for x in json.loads(losses.PATH.read_text())]
    got = [float(x) for x in losses.losses()]
    off = [abs(a - b) / b for a, b in zip(got, want, strict=True)]
    assert max(off) < 2e-6, (
        f"the losses are\n{got}\nand were\n{want}\n"
        "If you meant this, regenerate with `python -m tests.golden.losses` and say why in the commit."
    )
