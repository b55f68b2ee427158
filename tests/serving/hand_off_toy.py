"""A miniature model whose pages travel; run as a program, it writes on what arrives on its standard input."""

import json
import sys

import numpy as np

from moejax.serving.engine import serve
from moejax.serving.hand_off import Inbox
from moejax.serving.pages import Pages
from moejax.serving.schedulers.disaggregated import Disaggregated
from moejax.serving.state import Job, ServeState
from tests.serving.toy import Toy

LAYERS = 4


class PagedToy(Toy):
    """The Toy with pages that can be read and written."""

    def page_layout(self):
        return {"token": ((self.size,), np.dtype("uint64")), "depth": ((self.size,), np.dtype("int64"))}

    def read_pages(self, pages):
        cells = np.asarray(pages, int)[:, None] * self.size + np.arange(self.size)
        return {"token": self.token_C[cells], "depth": self.depth_C[cells]}

    def write_pages(self, pages, arrays):
        cells = np.asarray(pages, int)[:, None] * self.size + np.arange(self.size)
        self.token_C[cells], self.depth_C[cells] = arrays["token"], arrays["depth"]


def state_of(slots: int, pages: int, size: int = 4) -> ServeState:
    return ServeState(slots, Pages(pages, size), LAYERS)


def jobs_of(seed: int, count: int = 12, shared: int = 5) -> list[Job]:
    """Prompts that begin alike."""
    rng = np.random.default_rng(seed)
    begin = tuple(rng.integers(1, 50, size=shared).tolist())
    return [
        Job(i, begin + tuple(rng.integers(1, 50, size=rng.integers(1, 14)).tolist()), int(rng.integers(1, 9)))
        for i in range(count)
    ]


def write_on(jobs, inbox_of, state: ServeState, ends=frozenset()) -> dict[int, list[int]]:
    """The texts after their first tokens."""
    toy = PagedToy(state)
    jobs = [job for job in jobs if job.max_new > 1]
    texts = {job.id: [] for job in jobs}
    for step in serve(jobs, Disaggregated(inbox_of(toy), toy), toy, state, ends):
        for drawn in step.written:
            texts[drawn.job].append(drawn.token)
    return texts


if __name__ == "__main__":
    seed, slots, pages = map(int, sys.argv[1:])
    with open(0, "rb", buffering=0) as stream:
        inbox_of = lambda toy: Inbox(stream, toy.page_layout(), pages)
        print(json.dumps(write_on(jobs_of(seed), inbox_of, state_of(slots, pages))))
