"""The lines that answer requests: plain ones, and those of OpenAI's batch files."""

import dataclasses
import json
from typing import Any

from moejax.serving.batch_file import Job
from moejax.serving.completion import Completion, Likelihood
from moejax.serving.request import RequestError
from moejax.tokenizer import Tokenizer

HALF_A_CHARACTER = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Answers:
    """How answers are written; each is pure ASCII, without the end of the line."""

    model_name: str
    created: int  # seconds since 1970
    tokenizer: Tokenizer | None = None  # of the model; names tokens

    def line(self, job: Job, completion: Completion | None) -> str:
        """The answer to `job`; without a completion, what is wrong with it."""
        if job.is_openai:
            row = self._openai(job, completion)
        elif completion is None:
            row = {"id": job.id, "error": _error(job.error)}
        else:
            row = self._plain(job, completion)
        return json.dumps(row, allow_nan=False)

    def _plain(self, job: Job, completion: Completion) -> dict:
        row = {
            "id": job.id,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": len(completion.tokens),
        }
        logprobs = self._completion_logprobs(job, completion)
        return row if logprobs is None else row | {"logprobs": logprobs}

    def _openai(self, job: Job, completion: Completion | None) -> dict:
        if completion is None:
            status, body = 400, {"error": _error(job.error)}
        else:
            status, body = 200, self._openai_body(job, completion)
        response = {"status_code": status, "request_id": f"req_{job.number}", "body": body}
        return {"id": f"batch_req_{job.number}", "custom_id": job.id, "response": response, "error": None}

    def _openai_body(self, job: Job, completion: Completion) -> dict:
        used, written = completion.prompt_tokens, len(completion.tokens)
        if job.is_chat:
            choice = {"message": {"role": "assistant", "content": completion.text}}
            logprobs = self._chat_logprobs(job, completion)
        else:
            choice = {"text": completion.text}
            logprobs = self._completion_logprobs(job, completion)
        choice |= {"index": 0, "logprobs": logprobs, "finish_reason": completion.finish_reason}
        return {
            "id": f"{'chatcmpl' if job.is_chat else 'cmpl'}-{job.number}",
            "object": "chat.completion" if job.is_chat else "text_completion",
            "created": self.created,
            "model": self.model_name,
            "choices": [choice],
            "usage": {"prompt_tokens": used, "completion_tokens": written, "total_tokens": used + written},
        }

    def _completion_logprobs(self, job: Job, completion: Completion) -> dict | None:
        """Columns over the tokens; what is likeliest comes with the token itself."""
        if completion.logprobs is None:
            return None
        columns: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        offset = 0
        for before, token, found in _places(job, completion):
            text = self._text(before, token)
            top = {self._text(before, id): nats for id, nats in reversed(found.top)}
            for name, value in zip(columns, (text, found.log_prob, top, offset), strict=True):
                columns[name].append(value)
            top[text] = found.log_prob
            offset += len(text)
        return columns

    def _chat_logprobs(self, job: Job, completion: Completion) -> dict | None:
        """One entry per token."""
        if completion.logprobs is None:
            return None
        content = [
            self._entry(before, token, found.log_prob)
            | {"top_logprobs": [self._entry(before, id, nats) for id, nats in found.top]}
            for before, token, found in _places(job, completion)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, before: tuple[int, ...], token: int, log_prob: float) -> dict:
        text = self._text(before, token)
        known = HALF_A_CHARACTER not in text
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode()) if known else None}

    def _text(self, before: tuple[int, ...], token: int) -> str:
        """A token as text; one without text, such as a control token, as its number."""
        text = self.tokenizer.decode_after(before, [token]) if self.tokenizer else ""
        return text or f"token_id:{token}"


def _places(job: Job, completion: Completion) -> list[tuple[tuple[int, ...], int, Likelihood]]:
    """(token before, token, its likelihood) of every token."""
    tokens = completion.tokens
    before = (job.request.tokens[-1], *tokens)[: len(tokens)]
    return [
        ((last,), token, found)
        for last, token, found in zip(before, tokens, completion.logprobs, strict=True)
    ]


def _error(error: RequestError) -> dict[str, Any]:
    return {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.code}
