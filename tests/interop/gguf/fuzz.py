"""Opens damaged copies of GGUF files, under a limit of memory and time; run as a program of its own.

    python -m tests.interop.gguf.fuzz DIRECTORY FIRST COUNT

The directory has the sound files; copies number FIRST and on are made from them, each from its own seed. What
is printed counts how they ended; anything but a sound model or an error of moejax ends the program.
"""

import collections
import json
import os
import pathlib
import resource
import signal
import sys
import warnings

import numpy as np

from moejax.errors import CheckpointError, UsageError
from moejax.interop.gguf.architectures import hub_model

MEMORY = 512 << 20  # bytes beside what the program has when it begins
SECONDS = 2  # of processor time
WORDS = (0, 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 32, 2**64 - 1)
LIKELY = (0.5, 0.1, 0.25, 0.05, 0.05, 0.05)  # a file that grows or shrinks is refused for that alone
MOST = 1 << 16  # bytes of each tensor that are read


def main(directory: str, first: int, count: int) -> None:
    warnings.simplefilter("error")
    sound = [Sound(path) for path in sorted(pathlib.Path(directory).glob("*.gguf"))]
    target = pathlib.Path(directory) / "damaged"
    held = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    ends = collections.Counter()
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        sound[number % len(sound)].damaged(target, rng)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)  # nobody handles the signal: too slow is dead
        try:
            ends[outcome(target)] += 1
        except BaseException as error:
            raise SystemExit(f"copy {number}: {type(error).__name__}: {error}") from error
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(json.dumps(ends))


class Sound:
    """A file to make damaged copies of; the copies have a hole where its last tensors are."""

    def __init__(self, path: pathlib.Path):
        tensors = list(hub_model(path)[1].file.tensors.values())
        self.size, self.start = path.stat().st_size, tensors[0].at
        with open(path, "rb") as file:
            self.head = file.read(self.start)

    def damaged(self, path: pathlib.Path, rng) -> None:
        head = bytearray(self.head)
        size = self.size
        for _ in range(rng.integers(1, 3)):
            at, kind = int(rng.integers(len(head))), rng.choice(6, p=LIKELY)
            if kind == 0:
                head[at] ^= 1 << rng.integers(8)
            elif kind == 1:
                head[at : at + 8] = WORDS[rng.integers(len(WORDS))].to_bytes(8, "little")
            elif kind == 2:
                head[at : at + 4] = (WORDS[rng.integers(len(WORDS))] & 0xFFFFFFFF).to_bytes(4, "little")
            elif kind == 3:
                size = int(rng.integers(size))
            elif kind == 4:
                del head[at : at + int(rng.integers(1, 40))]
            else:
                head[at:at] = head[at : at + int(rng.integers(1, 40))]
        path.write_bytes(head)
        os.truncate(path, size)


def outcome(path: pathlib.Path) -> str:
    """How opening the file and looking into every tensor ended."""
    try:
        _, source = hub_model(path)
        list(map(str, source.metadata.values()))
        for name in source.names():
            rows = source.info(name).shape[0]
            source.read(name, (slice(0, max(1, min(rows, MOST // source.info(name).shape[-1]))),))
    except (CheckpointError, UsageError) as error:
        assert str(path) in str(error) or isinstance(error, UsageError)
        return type(error).__name__
    return "sound"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
