"""moejax models in the Language Model Evaluation Harness, https://github.com/EleutherAI/lm-evaluation-harness.

    moejax-eval --model moejax --model_args pretrained=smollm2 --tasks arc_easy --batch_size 8

Its command line is that of `lm-eval`. As its other models do, this one takes names of control tokens in a
text for the tokens.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

try:
    import lm_eval.__main__
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError(f"{error}; pip install 'moejax[eval]' brings the evaluation harness") from error
from tqdm import tqdm

from moejax import compile_cache
from moejax.config import require
from moejax.errors import UsageError
from moejax.model_io import load
from moejax.serving.causal import causal
from moejax.serving.generate import complete
from moejax.serving.model import Model
from moejax.serving.request import MAX_STOPS, Sampling, make_request
from moejax.serving.score import score
from moejax.serving.unroll import unrolled

MAX_NEW_TOKENS = 256  # where a task does not say
ROWS = 8


@register_model("moejax")
class MoejaxLM(TemplateLM):
    """A model of moejax for tasks of the harness.

    Args:
      pretrained: what `moejax.load` takes, or a `moejax.Model`.
      batch_size: texts computed together.
      dtype: to compute in, as of `moejax.load`.
      max_batch_size, device: have no effect; the harness gives them to every model.
    """

    def __init__(
        self,
        pretrained: str | Model,
        batch_size=ROWS,
        dtype: str | None = None,
        max_batch_size=None,
        device=None,
    ):
        super().__init__()
        model = pretrained if isinstance(pretrained, Model) else load(pretrained, dtype=dtype)
        require(model.tokenizer is not None, f"{pretrained} has no tokenizer, so it can read no task")
        self.model, self.name = causal(model), str(pretrained)
        self.tokenizer = model.tokenizer
        self._rows = ROWS if str(batch_size) in ("None", "auto") else int(batch_size)
        require(self._rows >= 1, f"batch_size={batch_size} must be at least 1")

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return _first(self.tokenizer.eos, self.tokenizer.bos)

    @property
    def prefix_token_id(self) -> int:
        """What comes before the first token of a text that is scored as a whole."""
        return _first(self.tokenizer.bos, self.tokenizer.eos)

    @property
    def tokenizer_name(self) -> str:
        """A name for what turns texts into ids, in the harness' caches."""
        return self.name.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation."""
        return self.tokenizer.render(chat_history, answer=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What the harness notes of the template."""
        return self.tokenizer.chat_template if chat_template else None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Ids of a text; with the begin token where the model wants it and the text has none of its own."""
        ids = self.tokenizer.encode_rendered(string)
        bos = [self.tokenizer.bos] if self.tokenizer.add_bos and add_special_tokens is not False else []
        return ids if ids[:1] == bos else [*bos, *ids]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token with as much context as the model takes."""
        windows, owner = [], []
        for i, request in enumerate(requests):
            own = _windows(
                self.tokenizer.encode_rendered(request.args[0]), self.prefix_token_id, self.model.context
            )
            windows += own
            owner += [i] * len(own)
        totals = [0.0] * len(requests)
        for i, found in self._progress(score(self.model, windows, self._rows), len(windows), disable_tqdm):
            totals[owner[i]] += found.log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of its stop texts."""
        settings = [_settings(request.args[1]) for request in requests]
        made = [
            self._request(request.args[0], own) for request, (own, _) in zip(requests, settings, strict=True)
        ]
        texts = [""] * len(requests)
        done = complete(unrolled(self.model), made, self._rows)
        for i, completion in self._progress(done, len(made), disable_tqdm):
            texts[i] = _cut(completion.text, settings[i][1])
            self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
        return texts

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        answers: list[Any] = [None] * len(requests)
        for i, found in self._progress(score(self.model, pairs, self._rows), len(pairs), disable_tqdm):
            answers[i] = (found.log_prob, found.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
        return answers

    def _request(self, context: str, sampling: Sampling):
        """The request to go on after the end of `context` that leaves room for the answer."""
        room = self.model.context - sampling.max_tokens
        require(
            room >= 1, f"max_gen_toks={sampling.max_tokens} leaves no room in {self.model.context} tokens"
        )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return make_request(self.model, ids[-room:], sampling)

    def _progress(self, results: Iterable, total: int, disable: bool) -> Iterator:
        return tqdm(results, total=total, disable=disable, desc="moejax")


def _first(*ids: int | None) -> int:
    found = next((id for id in ids if id is not None), None)
    if found is None:
        raise UsageError("the tokenizer has neither a begin nor an end token, so nothing can precede a text")
    return found


def _windows(ids: Sequence[int], prefix: int, context: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) pairs that score every id once, each time with as much context as fits."""
    rolling = utils.get_rolling_token_windows(list(ids), prefix, context, 1)
    return [utils.make_disjoint_window(window) for window in rolling]


def _settings(given: dict[str, Any]) -> tuple[Sampling, list[str]]:
    """(how to sample, stop texts) of a task's generation_kwargs."""
    given = dict(given)
    until = given.pop("until", None) or []
    max_tokens = given.pop("max_gen_toks", MAX_NEW_TOKENS)
    greedy = not given.pop("do_sample", given.get("temperature", 0) > 0)
    sampling = {name: given.pop(name) for name in ("temperature", "top_k", "top_p", "seed") if name in given}
    if given:
        raise UsageError(f"generation_kwargs {', '.join(map(str, given))} are not served; leave them out")
    sampling = {} if greedy else {"temperature": 1.0} | sampling
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    return Sampling(max_tokens=max_tokens, stop=stops[:MAX_STOPS], **sampling), stops


def _cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`."""
    return text[: min([len(text), *(text.find(stop) for stop in stops if stop in text)])]


def main() -> None:
    """The harness' own command line, with moejax among its models."""
    compile_cache.use()
    try:
        lm_eval.__main__.cli_evaluate()
    except UsageError as error:
        sys.exit(f"moejax-eval: {error}")


if __name__ == "__main__":
    main()
