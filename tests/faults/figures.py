"""The full count of kills, written down; takes minutes.

python -m tests.faults.figures
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import random
import tempfile
import time

import jax

from tests.faults import kills, server, trainer
from tests.faults.conftest import write_text

PLACE = trainer.ROOT / "docs" / "faults.md"
KILLS, STEPS = 12, 200
PAGE = """# Kills survived

`python -m tests.faults.figures` writes this page: a run of {steps} steps that saves every {every} steps is
killed with `kill -9` at {kills} random moments (`--seed={seed}`), a quarter of them while it starts; each
time the same command starts it again. In the end it is compared with an undisturbed run.

| | |
| --- | --- |
| final state that is not bit-equal | {differing} of {leaves} arrays |
| data seen (hash over every batch) | {data} |
| training lines missing, repeated or different in `metrics.jsonl` | {lines} of {steps} |
| damaged checkpoints after a kill | 0 (every file of every checkpoint hashed after each) |
| files left over | {leftovers} |
| steps computed again, in total | {lost} (at most {worst} after one kill) |
| machine | {machine}; all {processes} processes took {seconds:.0f} s |

| kill | last step logged | newest checkpoint |
| --- | --- | --- |
{table}

A save runs beside the steps that follow it, so a kill loses at most one interval and the steps that are
made while one save is written; the next save waits for it, so that is never more than two intervals. Steps
of this run take milliseconds and a save some tenths of a second, with files hashed and synced: the kills at
two intervals are those of a save that was not whole yet. A model whose save takes a small part of an interval
loses little more than one.
"""
BATCH_KILLS, LINES = 20, 400
BATCHES = """
## Batches of requests

`serve.py` answers a file of {lines} lines, one in nine of them wrong, and is killed with `kill -9` at
{kills} random bytes of the answers that it keeps (`--seed={seed}`): what it wrote beyond that byte is cut
off, as if the kill had come in the middle of the write. The same command with `--resume` goes on each time.
In the end its output is compared with that of an undisturbed run.

| | |
| --- | --- |
| bytes of the output that differ | {differing} of {size} |
| answers missing, or there twice | {wrong} of {lines} |
| kills in the middle of a line | {torn} of {kills} |
| files left over | {leftovers} |
| machine | {machine}; all {processes} processes took {seconds:.0f} s |
"""


def measure(seed: int, folder: pathlib.Path) -> str:
    """The page, from a fresh experiment in `folder`."""
    begin = time.monotonic()
    write_text(folder / "text.py")
    train = trainer.Trainer(folder / "text.py", folder / "cache")
    flags = (f"--config.train.steps={STEPS}",)
    ended = train(folder / "straight", *flags)
    assert ended.code == 0, ended.output
    seen = kills.kill_often(train, folder / "run", flags, seed, KILLS, STEPS)
    run, straight = trainer.saved(folder / "run"), trainer.saved(folder / "straight")
    differing = trainer.differing(run, straight)
    lines, expected = trainer.losses(folder / "run"), trainer.losses(folder / "straight")
    lost = [kill.logged - kill.saved for kill in seen]
    return PAGE.format(
        steps=STEPS,
        every=kills.EVERY,
        kills=KILLS,
        seed=seed,
        differing=len(set(differing) - {"meta", "step"}),
        leaves=len(straight.leaf),
        data="equal" if run.meta == straight.meta else "different",
        lines=len(set(expected) ^ set(lines)) + len(lines) - len(set(lines)),
        leftovers=len(trainer.leftovers(folder / "run")),
        lost=sum(lost),
        worst=max(lost),
        machine=machine(),
        processes=KILLS + 2,
        seconds=time.monotonic() - begin,
        table="\n".join(f"| {n} | {kill.logged} | {kill.saved} |" for n, kill in enumerate(seen, 1)),
    )


def measure_batches(seed: int, folder: pathlib.Path) -> str:
    """The part of the page that is about `serve.py`, from a fresh experiment in `folder`."""
    begin = time.monotonic()
    requests, straight, output = (folder / name for name in ("in.jsonl", "straight.jsonl", "out.jsonl"))
    server.save_model(folder / "model")
    server.write_batch(requests, LINES)
    serve = server.Server(folder / "model", folder / "cache")
    ended = serve(requests, straight)
    assert ended.code == 0, ended.output
    size = straight.stat().st_size
    torn = server.kill_often(serve, requests, output, seed, BATCH_KILLS, size)
    found, expected = output.read_bytes(), straight.read_bytes()
    ids = [json.loads(line)["id"] for line in found.splitlines()]
    wanted = [json.loads(line)["id"] for line in expected.splitlines()]
    return BATCHES.format(
        lines=LINES,
        kills=BATCH_KILLS,
        seed=seed,
        differing=sum(a != b for a, b in itertools.zip_longest(found, expected)),
        size=len(expected),
        wrong=len(set(ids) ^ set(wanted)) + len(ids) - len(set(ids)),
        torn=sum(torn),
        leftovers=len(list(folder.glob("*out.jsonl*"))) - 1,
        machine=machine(),
        processes=BATCH_KILLS + 2,
        seconds=time.monotonic() - begin,
    )


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__} on CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    seed = parser.parse_args().seed
    print(f"{seed=}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        PLACE.write_text(measure(seed, pathlib.Path(folder)))
    with tempfile.TemporaryDirectory() as folder, PLACE.open("a") as page:
        page.write(measure_batches(seed, pathlib.Path(folder)))
    print(f"wrote {PLACE}")


if __name__ == "__main__":
    main()
