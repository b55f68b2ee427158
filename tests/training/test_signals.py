"""Stopping on request, in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from moejax.training.signals import EXIT_CODE, Interrupt

# Like a trainer: steps until it is asked to stop, then a save that takes its time.
TRAIN = """
import sys, time
from moejax.training.signals import Interrupt
with Interrupt() as interrupt:
    for step in range(1, 2000):
        print(step, flush=True)
        time.sleep(0.02)
        if interrupt.should_stop(step):
            print("saving", flush=True)
            time.sleep(float(sys.argv[1]))
            print(interrupt.describe(step), flush=True)
            sys.exit(75)
"""

# The main thread waits outside of Python's sight, as in a long compilation.
WAIT = """
import ctypes
from moejax.training.signals import Interrupt
with Interrupt():
    print("waiting", flush=True)
    libc = ctypes.CDLL(None)
    for _ in range(60):
        libc.sleep(1)
"""


# One of two processes that must stop at the same step.
PAIR = """
import sys, time
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
from moejax.training.signals import Interrupt
with Interrupt() as interrupt:
    for step in range(1, 2000):
        print("step", step, flush=True)
        time.sleep(0.02)
        if interrupt.should_stop(step):
            print(interrupt.describe(step), flush=True)
            break
"""


def start(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_saves_the_step_and_stops(number):
    with start(TRAIN, "0") as process:
        first = process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    last = int((first + out).split("saving")[0].split()[-1])
    assert process.returncode == 75
    assert f"stopped by {number.name} after step {last}, which is saved" in out
    assert f"{number.name} received: saving" in err and "once more = exit now" in err


def test_the_second_signal_ends_the_save():
    with start(TRAIN, "60") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        while process.stdout.readline() != "saving\n":
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == EXIT_CODE == 75
    assert "SIGINT again: exit now, without saving" in err
    assert "stopped by" not in out


def test_signals_are_heard_while_the_main_thread_is_busy():
    with start(WAIT) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        while "SIGINT received: saving the first step" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == EXIT_CODE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_stop_at_the_same_step(number):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    with start(PAIR, port, "0") as first, start(PAIR, port, "1") as second:
        for process in (first, second):
            while not process.stdout.readline().startswith("step"):
                pass
        second.send_signal(number)
        outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    ends = [out.splitlines()[-1] for out, _ in outputs]
    assert ends[0].split("after")[1] == ends[1].split("after")[1]
    assert f"stopped by {number.name} after step" in ends[1]


def test_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with Interrupt() as interrupt:
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        assert not interrupt.should_stop(1)
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_another_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with Interrupt() as interrupt:
            seen.append((signal.getsignal(signal.SIGTERM), interrupt.should_stop(1)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
