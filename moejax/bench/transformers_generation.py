"""transformers as a contestant in batch generation: `python transformers_generation.py DIRECTORY THREADS`.

A program of its own, with the protocol of `llama_cpp_generation.py`; a task also has {"batch": rows}, which
prompts of similar length share, and {"dtype": ...}.
"""

import functools
import json
import sys
import time

import torch
import transformers


class Generator:
    """The model in the types that are asked for, and how it takes a batch."""

    def __init__(self, path: str, threads: int):
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self.path = path
        self._model = functools.cache(self._load)

    def _load(self, dtype: str):
        load = transformers.AutoModelForCausalLM.from_pretrained
        model = load(self.path, dtype=getattr(torch, dtype)).eval()
        model.config.eos_token_id = model.generation_config.eos_token_id = None
        return model

    def run(self, prompts: list[list[int]], new_tokens: int, batch: int, dtype: str) -> dict:
        """Batches of prompts that are neighbours when sorted by length; always the most likely token."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        tokens, prefill, decode = [[] for _ in prompts], 0.0, 0.0
        for start in range(0, len(order), batch):
            own = order[start : start + batch]
            begin = time.perf_counter()
            written, first = self._generate([prompts[i] for i in own], new_tokens, self._model(dtype))
            prefill += first - begin
            decode += time.perf_counter() - first
            for i, row in zip(own, written, strict=True):
                tokens[i] = row
        return {"prefill": prefill, "decode": decode, "tokens": tokens}

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], new_tokens: int, model) -> tuple[list[list[int]], float]:
        """(new tokens of every prompt, when the first of them were there)."""
        longest, times = max(map(len, prompts)), []

        def noted(*_, **__):
            times.append(time.perf_counter())
            return torch.zeros(len(prompts), dtype=torch.bool)

        written = model.generate(
            torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
            ),
            stopping_criteria=transformers.StoppingCriteriaList([noted]),
        )
        return written[:, longest:].tolist(), times[0]


def main(path: str, threads: int) -> None:
    generator = Generator(path, threads)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        print(json.dumps(generator.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
