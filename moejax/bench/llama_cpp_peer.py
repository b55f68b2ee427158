"""llama.cpp's logits of texts: `python llama_cpp_peer.py MODEL LENGTH`, a program of its own.

Reads texts of LENGTH int32 ids from its input, and writes float32 logits [LENGTH, vocabulary] of each, after
one line that says the vocabulary and the version. It imports nothing of moejax, so that it runs in any Python
that has llama-cpp-python.
"""

import importlib
import json
import sys

import numpy as np

ROWS = 64


def main(path: str, length: int) -> None:
    llama_cpp = importlib.import_module("llama_cpp")  # no dependency of moejax; to install it compiles C++
    model = llama_cpp.Llama(path, n_ctx=length, n_batch=length, logits_all=True, verbose=False)
    about = {"vocab": model.n_vocab(), "version": llama_cpp.__version__}
    sys.stdout.buffer.write(json.dumps(about).encode() + b"\n")
    sys.stdout.buffer.flush()
    while raw := sys.stdin.buffer.read(4 * length):
        model.reset()
        model.eval(np.frombuffer(raw, np.int32).tolist())
        for at in range(0, length, ROWS):  # all at once may be more than one write to a pipe can take
            sys.stdout.buffer.write(model.scores[at : min(at + ROWS, length)].tobytes())
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
