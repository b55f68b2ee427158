"""Pages of a device: what is read is what was written, and a text goes on in another process."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from moejax.serving import hand_off
from moejax.serving.engine import serve
from moejax.serving.schedulers.fcfs import Fcfs
from tests import pair
from tests.serving import hand_off_device

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_what_is_written_is_read():
    """Three pages, of which the padding to four touches no other."""
    executor, _ = hand_off_device.device()
    layout = executor.page_layout()
    rng = np.random.default_rng(0)
    pages = {name: rng.normal(size=(3, *shape)).astype(dtype) for name, (shape, dtype) in layout.items()}
    executor.write_pages([7, 0, 5], pages)
    found = executor.read_pages(range(hand_off_device.SIZES.num_pages))
    for name, x in found.items():
        np.testing.assert_array_equal(x[[7, 0, 5]], pages[name])
        assert x.dtype == layout[name][1] and not np.delete(x, [7, 0, 5], 0).any()


def test_a_text_goes_on_in_another_process():
    """Read here, written there: the same text as by one engine, greedy or drawn."""
    command = [sys.executable, "-m", "tests.serving.hand_off_device"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": pair.FLAGS}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as other:
        jobs, first = hand_off_device.jobs(), {}
        executor, state = hand_off_device.device()
        for step, parcels in hand_off.read_prompts(jobs, Fcfs(16), executor, state, frozenset()):
            first |= {drawn.job: [drawn.token] for drawn in step.written}
            for parcel in parcels:
                hand_off.send(other.stdin, parcel)
        other.stdin.close()
        wanted = {job.id: [] for job in jobs}
        executor, state = hand_off_device.device()
        for step in serve(jobs, Fcfs(16), executor, state):
            for drawn in step.written:
                wanted[drawn.job].append(drawn.token)
        later = json.loads(other.stdout.read())
    assert other.returncode == 0
    assert {job.id: first[job.id] + later[str(job.id)] for job in jobs} == wanted
    assert len({tuple(text) for text in wanted.values()}) == len(jobs)
