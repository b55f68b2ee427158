"""A small model whose pages travel; run as a program, it writes on what arrives on its standard input."""

import json
import sys

import jax
import numpy as np

from moejax.model.forward import init
from moejax.serving.device import Sizes
from moejax.serving.device_pages import PagedDevice
from moejax.serving.engine import serve
from moejax.serving.hand_off import Inbox
from moejax.serving.model import Model
from moejax.serving.pages import Pages
from moejax.serving.request import Sampling
from moejax.serving.schedulers.disaggregated import Disaggregated
from moejax.serving.state import Job, ServeState
from tests.contracts import tiny

CONTEXT, PAGE = 32, 4
SIZES = Sizes(num_slots=3, num_pages=24, page_size=PAGE, rows=(16,))


def jobs() -> list[Job]:
    rng = np.random.default_rng(3)
    prompts = [tuple(rng.integers(1, 30, size=n).tolist()) for n in (5, 11, 2, 8, 7)]
    settings = [Sampling(temperature=1.5 * (i % 2), seed=i) for i in range(5)]
    return [Job(i, prompt, 6, settings=settings[i]) for i, prompt in enumerate(prompts)]


def device() -> tuple[PagedDevice, ServeState]:
    """The same parameters in every process; every other text is drawn and not the most likely one."""
    m = tiny.model(tied=False)
    model = Model(m, init(jax.random.key(0), m), None, CONTEXT)
    return PagedDevice(model, SIZES), ServeState(SIZES.num_slots, Pages(SIZES.num_pages, PAGE), m.num_layers)


if __name__ == "__main__":
    executor, state = device()
    texts = {job.id: [] for job in jobs()}
    with open(0, "rb", buffering=0) as stream:
        inbox = Inbox(stream, executor.page_layout(), CONTEXT // PAGE)
        for step in serve(jobs(), Disaggregated(inbox, executor), executor, state):
            for drawn in step.written:
                texts[drawn.job].append(drawn.token)
    json.dump(texts, sys.stdout)
