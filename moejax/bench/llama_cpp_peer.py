"""llama.cpp's logits of texts: `python llama_cpp_peer.py MODEL LENGTH`, a program of its own.

Reads texts of LENGTH int32 ids from its input, and writes float32 logits [LENGTH, vocabulary] of each, after
one line that says the vocabulary and the version. It imports nothing of moejax, so that it runs in any Python
that has llama-cpp-python.
"""

import json
import sys

import llama_cpp
import numpy as np


def main(path: str, length: int) -> None:
    model = llama_cpp.Llama(path, n_ctx=length, n_batch=length, logits_all=True, verbose=False)
    about = {"vocab": model.n_vocab(), "version": llama_cpp.__version__}
    sys.stdout.buffer.write(json.dumps(about).encode() + b"\n")
    sys.stdout.buffer.flush()
    while raw := sys.stdin.buffer.read(4 * length):
        model.reset()
        model.eval(np.frombuffer(raw, np.int32).tolist())
        sys.stdout.buffer.write(np.ascontiguousarray(model.scores[:length], np.float32))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
