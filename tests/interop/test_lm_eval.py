"""The evaluation harness on local tasks gives the numbers that forward passes give."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra moejax[eval] is not installed")

import moejax
from configs import base
from moejax.errors import UsageError
from moejax.training.data.tokenizer import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

CHOICES = [
    {"question": "two and two", "choices": [" four", " five", " a"], "answer": 0},
    {"question": "", "choices": ["x", "yy"], "answer": 1},
    {"question": "red or ", "choices": ["blue", "green"], "answer": 0},
]
TEXTS = ["a short text", "a text that is longer than the context of the model, by far: " + "0123456789" * 8]
PROMPTS = ["say something", "a", "say more"]
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def model():
    cfg = dataclasses.replace(base.tiny().model, tied=False)
    tokenizer = dataclasses.replace(byte_tokenizer(), chat_template="{{ messages[0].content }}<|eos|>")
    return moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), tokenizer, context=48)


@pytest.fixture(scope="module")
def adapter(model):
    from moejax.interop.lm_eval import MoejaxLM

    return MoejaxLM(model, batch_size="2")


@pytest.fixture
def evaluate(adapter, tmp_path, monkeypatch):
    """Results and samples of tasks over rows of local files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(name: str, rows: list[dict]):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        task = {"task": name, "test_split": "test", **source, **TASKS[name]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        found = lm_eval.simple_evaluate(adapter, tasks=[name], task_manager=manager, bootstrap_iters=0)
        return found["results"][name], sorted(found["samples"][name], key=lambda sample: sample["doc_id"])

    return run


def log_prob(model, context: list[int], continuation: list[int]) -> float:
    """Of the continuation, from a forward pass."""
    logits_TV = np.asarray(
        moejax.forward(model.params, model.cfg, [[*context, *continuation]]).logits[0], float
    )
    log_prob_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    return sum(log_prob_TV[len(context) - 1 + i, id] for i, id in enumerate(continuation))


def test_multiple_choice(evaluate, model):
    result, samples = evaluate("choose", CHOICES)
    encode, right = model.tokenizer.encode, 0
    for row, sample in zip(CHOICES, samples, strict=True):
        question = row["question"].rstrip()
        space = row["question"][len(question) :]
        wanted = [
            log_prob(model, [1, *encode(question)], encode(space + choice)) for choice in row["choices"]
        ]
        found = [float(answer[0][0]) for answer in sample["resps"]]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        right += np.argmax(wanted) == row["answer"]
    assert result["acc,none"] == right / len(CHOICES)


def test_rolling(evaluate, model):
    result, samples = evaluate("read", [{"text": text} for text in TEXTS])
    short, long = (model.tokenizer.encode(text) for text in TEXTS)
    context, total = model.context, log_prob(model, [1], short)
    np.testing.assert_allclose(float(samples[0]["resps"][0][0]), total, rtol=1e-5)
    done = context
    total += log_prob(model, [1], long[:context])
    while done < len(long):
        count = min(context, len(long) - done)
        end = done + count
        window = long[end - context - 1 : end]
        total += log_prob(model, window[: len(window) - count], window[len(window) - count :])
        done = end
    bits = -total / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    np.testing.assert_allclose(result["bits_per_byte,none"], bits, rtol=1e-5)


def test_generation(evaluate, model):
    wanted = [own.text.split("\n")[0] for own in moejax.generate(model, PROMPTS, max_tokens=6)]
    rows = [{"prompt": prompt, "target": text} for prompt, text in zip(PROMPTS, wanted, strict=True)]
    result, samples = evaluate("write", rows)
    assert [sample["resps"][0][0] for sample in samples] == wanted
    assert result["exact_match,none"] == 1


def test_a_prompt_that_is_too_long_loses_its_beginning(adapter, model):
    instance = type("Instance", (), {"args": ("x" * 100, {"until": "q", "max_gen_toks": 4})})
    kept = [1, *model.tokenizer.encode("x" * 100)][-44:]
    assert adapter.generate_until([instance], disable_tqdm=True) == [
        moejax.generate(model, [kept], max_tokens=4)[0].text
    ]


def test_settings_of_a_task():
    from moejax.interop.lm_eval import _cut, _settings

    sampling, until = _settings({"until": "\n\n", "do_sample": True, "top_p": 0.5})
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, until) == (1.0, 0.5, 256, ["\n\n"])
    assert _settings({"temperature": 0.0})[0].temperature == 0
    assert _settings({"do_sample": False, "temperature": 0.7})[0].temperature == 0
    with pytest.raises(UsageError, match="num_beams are not served"):
        _settings({"num_beams": 4})
    assert _settings({"until": ["", *"abcdef"]})[0].stop == tuple("abcd"), (
        "what else ends a text is cut off later"
    )
    assert _settings({"until": ["", *"abcdef"]})[1] == [*"abcdef"]
    assert _cut("one\ntwo. three", [".", "\n"]) == "one"


def test_conversations(adapter, model):
    text = adapter.apply_chat_template([{"role": "user", "content": "hi"}])
    assert text == "hi<|eos|>" and adapter.chat_template(True) == model.tokenizer.chat_template
    assert adapter.tok_encode(text) == [1, *model.tokenizer.encode("hi"), 2]
    assert adapter.tok_encode("<|bos|>a") == [1, *model.tokenizer.encode("a")], "one begin token is enough"
    assert adapter.tok_encode("a", add_special_tokens=False) == model.tokenizer.encode("a")


def test_the_harness_knows_the_name():
    from lm_eval.api.registry import get_model

    from moejax.interop.lm_eval import MoejaxLM

    assert get_model("moejax") is MoejaxLM
