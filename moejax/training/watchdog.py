"""Ends a run that hangs, and says where it hung: a dead peer or a stuck device raises no error."""

import faulthandler
import os
import platform
import sys
import threading
import time
from pathlib import Path

from moejax.errors import HangError


class Watchdog:
    """Ends the process with HangError's exit code after `seconds` without a `beat`.

    Args:
        seconds: 0 turns it off.
        directory: where `stacks-<host>-<pid>.txt`, the stacks of all threads, is written.
    """

    def __init__(self, seconds: float, directory: str | os.PathLike):
        self._seconds = seconds
        self._stacks = Path(directory) / f"stacks-{platform.node()}-{os.getpid()}.txt"
        self._ended = threading.Event()
        self._last_beat = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._seconds:
            self._thread.join()

    def beat(self) -> None:
        """A step has ended."""
        self._last_beat = time.monotonic()

    def _watch(self) -> None:
        pause = min(1.0, self._seconds / 4)
        woken = time.monotonic()
        while not self._ended.wait(pause):
            now = time.monotonic()
            if now - woken > pause + self._seconds / 2:
                self.beat()  # this thread slept too: the process was stopped, and goes on
            elif now - self._last_beat > self._seconds:
                self._bite(now - self._last_beat)
            woken = now

    def _bite(self, silence: float) -> None:
        with open(self._stacks, "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        text = f"no step ended for {silence:.0f} s (train.watchdog_seconds={self._seconds:g}): the run hangs"
        os.write(sys.stderr.fileno(), f"\n{text}; the stacks of its threads are in {self._stacks}\n".encode())
        os._exit(HangError.exit_code)
