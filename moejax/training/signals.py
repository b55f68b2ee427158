"""Stopping on request: the first SIGTERM or Ctrl-C lets the step end and be saved, the second ends at once.

With `jax.distributed` the processes must agree on the step to stop at. JAX listens for SIGTERM then, and
`should_stop` asks it; Ctrl-C is passed on to it as a SIGTERM. Without it, nobody listens but this module.
"""

import os
import signal
import socket
import sys
import threading

import jax
from jax.experimental import multihost_utils

from moejax.errors import RetryError

EXIT_CODE = RetryError.exit_code  # saved or not, the same command goes on from the last checkpoint


class Interrupt:
    """Listens for SIGTERM and SIGINT between `with` and its end; for the main thread.

        with Interrupt() as interrupt:
            for step in ...:
                if interrupt.should_stop(step):
                    save, and raise RetryError(interrupt.describe(step))

    Signals are taken by a thread of their own, as Python runs no handler while the main thread waits for
    a compilation or a device.
    """

    def __init__(self):
        self.requested = False
        self.name = ""  # of the signal that came first
        self._step: int | None = None
        self._previous = {}
        self._distributed = False

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            return self  # a notebook's or a server's thread: signals are its caller's business
        self._distributed = jax.distributed.is_initialized()
        taken = (signal.SIGINT,) if self._distributed else (signal.SIGTERM, signal.SIGINT)
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        for number in taken:  # the byte of the wake-up file descriptor is what is acted on
            self._previous[number] = signal.signal(number, lambda *_: None)
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_) -> None:
        if not self._previous:
            return
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        self._sender.close()  # ends the listener
        self._listener.join()
        self._receiver.close()

    def should_stop(self, step: int) -> bool:
        """Whether to save `step`, which has just ended, and stop; ask after every step, in every process."""
        self._step = step
        if self._distributed and multihost_utils.reached_preemption_sync_point(step):
            self.requested, self.name = True, self.name or "SIGTERM"
            return True
        return self.requested and not self._distributed

    def describe(self, step: int) -> str:
        """What to tell the user after `step` was saved."""
        return f"stopped by {self.name} after step {step}, which is saved; run the same command to go on"

    def _listen(self) -> None:
        while received := self._receiver.recv(64):
            for number in received:
                if number in self._previous:
                    self._receive(signal.Signals(number).name)

    def _receive(self, name: str) -> None:
        if self.requested:
            _say(f"{name} again: exit now, without saving (the last checkpoint is whole)")
            os._exit(EXIT_CODE)
        self.requested, self.name = True, name
        after = "the first step" if self._step is None else f"step {self._step + 1}"
        _say(f"{name} received: saving {after} when it ends, then exit; once more = exit now")
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX passes it on, and names a step to all processes


def _say(text: str) -> None:
    sys.stderr.flush()
    os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
