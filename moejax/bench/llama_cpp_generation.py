"""llama.cpp as a contestant in batch generation: `python llama_cpp_generation.py MODEL THREADS`.

A program of its own that imports nothing of moejax, so that it runs in any Python that has llama-cpp-python.
It says its version in a line of JSON; then every line {"prompts": [ids, ...], "new_tokens": n} that it reads
gets a line {"prefill": seconds, "decode": seconds, "tokens": [ids, ...]}.
"""

import importlib
import json
import sys
import time

import numpy as np

BATCH = 2048  # tokens of a call, llama.cpp's default


class Generator:
    """The model, with a context of as many sequences as the task has prompts."""

    def __init__(self, path: str, threads: int):
        self.api = importlib.import_module("llama_cpp")  # no dependency of moejax; to install it compiles C++
        self.silence = self.api.llama_log_callback(lambda level, text, data: None)
        self.api.llama_log_set(self.silence, None)
        self.api.llama_backend_init()
        params = self.api.llama_model_default_params()
        self.model = self.api.llama_model_load_from_file(path.encode(), params)
        self.vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.threads = threads
        self.contexts = {}

    def run(self, prompts: list[list[int]], new_tokens: int) -> dict:
        """Read the prompts, then write for all of them at once; always the most likely token."""
        context = self._context(len(prompts), max(map(len, prompts)) + new_tokens)
        self.api.llama_memory_clear(self.api.llama_get_memory(context), True)
        begin = time.perf_counter()
        last = self._read(context, prompts)
        read = time.perf_counter()
        written = [[token] for token in last]
        for step in range(new_tokens - 1):
            rows = [
                (row[-1], len(prompt) + step, i, True)
                for i, (row, prompt) in enumerate(zip(written, prompts, strict=True))
            ]
            for i, token in self._decode(context, rows).items():
                written[i].append(token)
        end = time.perf_counter()
        return {"prefill": read - begin, "decode": end - read, "tokens": written}

    def _read(self, context, prompts: list[list[int]]) -> list[int]:
        rows = [
            (token, at, i, at == len(prompt) - 1)
            for i, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        last = {}
        for start in range(0, len(rows), BATCH):
            last |= self._decode(context, rows[start : start + BATCH])
        return [last[i] for i in range(len(prompts))]

    def _decode(self, context, rows: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """The next token of every sequence of which a row (token, position, sequence, wanted) is wanted."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for j, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[j], batch.pos[j], batch.logits[j] = token, position, wanted
            batch.n_seq_id[j], batch.seq_id[j][0] = 1, sequence
        code = self.api.llama_decode(context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        found = {
            sequence: self._likeliest(context, j) for j, (_, _, sequence, wanted) in enumerate(rows) if wanted
        }
        self.api.llama_batch_free(batch)
        return found

    def _likeliest(self, context, row: int) -> int:
        logits = self.api.llama_get_logits_ith(context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self.vocab,))))

    def _context(self, sequences: int, length: int):
        if (sequences, length) not in self.contexts:
            params = self.api.llama_context_default_params()
            params.n_ctx = sequences * (length + -length % 256)
            params.n_batch, params.n_seq_max = BATCH, sequences
            params.n_threads = params.n_threads_batch = self.threads
            self.contexts[sequences, length] = self.api.llama_init_from_model(self.model, params)
        return self.contexts[sequences, length]


def main(path: str, threads: int) -> None:
    generator = Generator(path, threads)
    print(json.dumps({"llama-cpp-python": generator.api.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(generator.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
