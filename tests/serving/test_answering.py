"""Jobs by the engine: what does not fit its cache, and what is wrong, is answered beside it."""

import dataclasses

import jax
import pytest

import moejax
from configs import base
from moejax.serving import batch
from moejax.serving.answering import Answering
from moejax.serving.batch_file import Job
from moejax.serving.request import Sampling, make_request
from moejax.training.data.tokenizer import byte_tokenizer

PAGE_BYTES = 2 * 2 * 2 * 16 * 16 * 4  # keys and values of 2 layers, 2 heads of width 16, 16 positions, f32


@pytest.fixture(scope="module")
def model():
    cfg = base.tiny().model
    return moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), byte_tokenizer(), context=64)


def test_the_cache_has_room_for_a_long_request_up_to_a_limit(model, monkeypatch):
    sizes = batch.sizes_for(model, 2)
    assert (sizes.page_size, sizes.num_pages) == (16, 2 * 64 // 16)
    endless = dataclasses.replace(model, context=10**6)
    monkeypatch.setattr(batch, "MOST_BYTES", 100 * PAGE_BYTES)
    assert batch.sizes_for(endless, 2).num_pages == 100
    assert batch.sizes_for(endless, 64).num_pages == 64 * 512 // 16


def test_what_the_engine_cannot_hold_is_answered_beside_it(model, monkeypatch):
    monkeypatch.setattr(batch, "MOST_BYTES", 2 * PAGE_BYTES)  # 32 positions
    prompts = ["a", "b" * 40, "c" * 20, None]
    sampling = Sampling(max_tokens=5)
    requests = [None if prompt is None else make_request(model, prompt, sampling) for prompt in prompts]
    jobs = [Job(i, False, i, request) for i, request in enumerate(requests)]
    read = []
    answering = Answering(model, 1, None, scheduler="chunked")
    done = {job.number: completion for job, completion in answering(iter(jobs), read.append)}
    wanted = [
        None if prompt is None else moejax.generate(model, [prompt], max_tokens=5)[0] for prompt in prompts
    ]
    assert [done[i] and done[i].text for i in range(4)] == [one and one.text for one in wanted]
    assert read == jobs and answering.counts.steps > 0
