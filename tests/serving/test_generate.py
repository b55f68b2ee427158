"""Decoding with a cache against the full forward pass, and what a request may expect of its batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.losses.loss_free import LossFreeBias
from moejax.model.forward import forward, init_cache
from moejax.seams import Batch
from moejax.serving import generate as serving
from moejax.serving.generate import bucket, generate, group_by_size
from moejax.serving.request import Request, RequestError, Sampling

PROMPTS = ["def f(x):", "a", "import os\n", "\u00e9t\u00e9 = 1"]
COUNT = 15  # tokens
run = functools.partial(generate, max_tokens=COUNT, batch_rows=4)


forward_jit = jax.jit(forward, static_argnames="m")


def whole_text(token_BT):
    B, T = token_BT.shape
    pos_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    return Batch(token_BT, pos_BT, jnp.ones((B, T), jnp.int32), jnp.ones((B, T), bool))


def greedy(model, prompt, count, sides=None):
    """The oracle: no cache, the whole text again for every token, at one padded length."""
    tokens = [model.tokenizer.bos, *model.tokenizer.encode(prompt)]
    start = len(tokens)
    for _ in range(count):
        padded = np.array([tokens + [0] * (model.context - len(tokens))], np.int32)
        out = forward_jit(model.params, model.cfg, whole_text(padded), sides=sides)
        tokens.append(int(jnp.argmax(out.logits_BTV[0, len(tokens) - 1])))
    return tuple(tokens[start:])


def test_bucket_worked_example():
    assert [bucket(size, 16, 48) for size in (1, 16, 17, 33, 48)] == [16, 16, 32, 48, 48]


def test_groups_depend_on_a_requests_own_size():
    def request(size, count):
        return Request((1,) * size, Sampling(max_tokens=count))

    requests = [request(3, 5), request(33, 5), request(32, 225), request(2, 254)]
    assert group_by_size(requests, 500) == {(32, 256): [0, 3], (64, 256): [1], (32, 500): [2]}
    assert group_by_size(requests[:2], 40) == {(32, 40): [0], (40, 40): [1]}


def test_greedy_text_is_that_of_the_full_forward(model):
    done = run(model, PROMPTS)
    for prompt, completion in zip(PROMPTS, done, strict=True):
        assert completion.tokens == greedy(model, prompt, COUNT)
        assert completion.text == model.tokenizer.decode(completion.tokens)
        assert (completion.finish_reason, completion.prompt_tokens) == ("length", 1 + len(prompt.encode()))


def test_logits_step_by_step_are_those_of_the_full_forward(model):
    tokens = np.array([model.tokenizer.encode("def f(x):\n    return x  # same")], np.int32)
    whole_TV = forward_jit(model.params, model.cfg, whole_text(tokens)).logits_BTV[0]
    cache, steps = init_cache(model.cfg, 1, tokens.shape[1] + 3), []
    for pos in range(tokens.shape[1]):
        at = np.array([[pos]], np.int32)
        batch = Batch(tokens[:, pos : pos + 1], at, np.ones_like(at), np.ones((1, 1), bool))
        out = forward_jit(model.params, model.cfg, batch, cache=cache)
        cache = out.cache
        steps.append(out.logits_BTV[0, 0])
    np.testing.assert_allclose(np.stack(steps), whole_TV, atol=1e-5)


def test_more_tokens_than_one_call_decodes(model):
    count = serving.STEPS + 5
    assert run(model, ["a"], max_tokens=count)[0].tokens == greedy(model, "a", count)


def test_it_stops_at_the_end_token(model):
    tokens = run(model, ["a"])[0].tokens
    for at in (0, 5):
        eos = tokens[at]
        ending = dataclasses.replace(model, tokenizer=dataclasses.replace(model.tokenizer, eos=eos))
        done = run(ending, ["a", "bb"])[0]
        assert (done.tokens, done.finish_reason) == (tokens[: tokens.index(eos)], "stop")


def test_the_last_allowed_token_may_be_followed_by_the_end_token(model):
    """The end token that would come after `max_tokens` tokens does not change the reason."""
    prompt = "x = [1, 2, 3]\n"
    tokens = run(model, [prompt])[0].tokens
    at = next(i for i in range(2, COUNT) if tokens[i] not in tokens[:i])
    ending = dataclasses.replace(model, tokenizer=dataclasses.replace(model.tokenizer, eos=tokens[at]))
    assert run(ending, [prompt], max_tokens=at)[0].finish_reason == "length"
    assert run(ending, [prompt], max_tokens=at + 1)[0].finish_reason == "stop"


def test_a_request_gets_the_same_tokens_in_any_company(model):
    settings = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
    alone = run(model, ["a"], seed=7, **settings)[0]
    mixed = run(
        model,
        [*PROMPTS, *PROMPTS],
        max_tokens=[COUNT] * 8,
        temperature=[0.9] * 2 + [0.0] * 6,
        top_k=[40] * 2 + [0] * 6,
        top_p=[0.95] * 2 + [1.0] * 6,
        seed=[3, 7, 1, 1, 1, 1, 1, 1],
    )
    assert mixed[1] == alone
    assert mixed[2] == mixed[6]
    other = run(model, ["a"], seed=8, **settings)[0]
    assert other.tokens != alone.tokens


def test_the_context_ends_a_completion(model):
    done = run(model, ["x = [1, 2, 3]\n"], max_tokens=30)[0]
    assert (done.prompt_tokens, len(done.tokens), done.finish_reason) == (15, model.context - 15, "length")


def test_prompts_of_token_ids_are_taken_as_they_are(model):
    tokens = [model.tokenizer.bos, *model.tokenizer.encode("a")]
    assert run(model, [tokens])[0] == run(model, ["a"])[0]


def test_a_learned_bias_shapes_the_routing(model):
    loss = LossFreeBias()
    state = jax.tree.map(lambda bias_LE: bias_LE.at[:, :2].add(3.0), loss.init(model.cfg))
    biased = dataclasses.replace(model, sides=loss.side(state))
    done = run(biased, ["def f(x):"])[0].tokens
    assert done == greedy(model, "def f(x):", COUNT, sides=biased.sides)
    assert done != run(model, ["def f(x):"])[0].tokens


def test_no_prompts_no_completions(model):
    assert run(model, []) == []


def test_errors_name_the_prompt(model):
    with pytest.raises(RequestError, match=r"prompts\[1\]: the prompt is empty"):
        run(model, ["a", ""])
    with pytest.raises(RequestError, match="seed has 3 values for 2 prompts"):
        run(model, ["a", "b"], seed=[1, 2, 3])
    with pytest.raises(RequestError, match="max_new_tokens is no setting of sampling"):
        run(model, ["a"], max_new_tokens=3)
    with pytest.raises(RequestError, match="give a list of texts"):
        run(model, "a")


def test_a_stop_text_ends_a_completion_and_leaves_the_others_alone(model):
    whole = run(model, PROMPTS, max_tokens=40)
    stop = whole[0].text[3:5]
    one, *others = run(model, PROMPTS, max_tokens=40, stop=[[stop, "never"], [], [], []])
    at = whole[0].text.index(stop)
    assert (one.text, one.finish_reason) == (whole[0].text[:at], "stop")
    assert one.tokens == whole[0].tokens[: len(one.tokens)] and len(one.tokens) < 16
    assert others == whole[1:]


def test_log_probabilities_are_those_of_the_full_forward(model):
    prompt = [model.tokenizer.bos, *model.tokenizer.encode("def")]
    settings = {"max_tokens": 5, "temperature": 1.5, "top_k": 3, "seed": [1, 2], "batch_rows": 2}
    plain = generate(model, [prompt, "a"], **settings)
    done, mate = generate(model, [prompt, "a"], logprobs=[2, None], **settings)
    assert ([done.tokens, mate], mate.logprobs) == ([plain[0].tokens, plain[1]], None)
    text = np.array([prompt + list(done.tokens)], np.int32)
    logits_TV = np.asarray(forward_jit(model.params, model.cfg, whole_text(text)).logits_BTV[0], np.float64)
    own_TV = logits_TV[len(prompt) - 1 : -1]
    own_TV = own_TV - np.log(np.exp(own_TV).sum(-1, keepdims=True))
    for found, token, own_V in zip(done.logprobs, done.tokens, own_TV, strict=True):
        best = np.argsort(-own_V)[:2]
        np.testing.assert_allclose(found.log_prob, own_V[token], atol=1e-4)
        assert [id for id, _ in found.top] == best.tolist()
        np.testing.assert_allclose([nats for _, nats in found.top], own_V[best], atol=1e-4)


def test_a_completion_knows_when_its_tokens_came(model):
    timing = run(model, ["a"], max_tokens=serving.STEPS + 5)[0].timing
    assert 0 < timing.first < timing.last
