"""The engine on a device: a scheduler changes time, never text; a request does not feel its batch mates."""

import dataclasses

import jax
import numpy as np
import pytest

import moejax
from configs import base
from moejax.serving import engine
from moejax.serving import step as one_step
from moejax.serving.batch import Counts, answer, sizes_for
from moejax.serving.device import Device, Sizes
from moejax.serving.pages import Pages
from moejax.serving.request import Sampling, make_request
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.layered import Layered
from moejax.serving.schedulers.packing import Packing
from moejax.serving.schedulers.shared_prefix import SharedPrefix
from moejax.serving.state import Job, ServeState
from moejax.training.data.tokenizer import byte_tokenizer

SIZES = Sizes(num_slots=4, num_pages=24, page_size=8, rows=(64, 128), num_parked=64)
SCHEDULERS = {
    "fcfs": Fcfs(64),
    "chunked 5": Chunked(5),
    "chunked 64": Chunked(64),
    "layered": Layered(unit=16, cap=48),
    "packing": Packing(64),
    "shared prefix": SharedPrefix(64),
}
GREEDY = Sampling(max_tokens=8, temperature=0.0, logprobs=2)


@pytest.fixture(scope="module")
def model():
    cfg = base.tiny().model
    return moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), byte_tokenizer(), context=64)


def requests(model, seed: int, count: int, sampling: Sampling = GREEDY) -> list:
    """Prompts of any length, many of which begin alike."""
    draw = np.random.default_rng(seed)
    stem = draw.integers(3, 259, 24).tolist()
    own = lambda: draw.integers(3, 259, draw.integers(1, 24)).tolist()
    prompts = [stem[: draw.integers(0, 25)] + own() for _ in range(count)]
    return [make_request(model, prompt, sampling) for prompt in prompts]


def texts(model, own, scheduler=Fcfs(64), sizes: Sizes = SIZES) -> list:
    found = dict(answer(model, own, scheduler, sizes))
    return [found[i] for i in range(len(own))]


def test_every_scheduler_writes_what_generate_writes(model):
    own = requests(model, 0, 9)
    wanted = moejax.generate(model, [one.tokens for one in own], max_tokens=8, logprobs=2)
    for name, scheduler in SCHEDULERS.items():
        for found, one in zip(texts(model, own, scheduler), wanted, strict=True):
            assert dataclasses.replace(found, logprobs=None) == dataclasses.replace(one, logprobs=None), name
            near = zip(found.logprobs, one.logprobs, strict=True)
            assert all(abs(here.log_prob - there.log_prob) < 1e-5 for here, there in near)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mixes", [3, pytest.param(200, marks=pytest.mark.nightly)])
def test_random_mixes_give_equal_text_across_schedulers_chunks_and_batch_sizes(model, mixes):
    """All on one device with one compiled step, whose pages hold what the mix before has left there."""
    sizes = Sizes(num_slots=8, num_pages=48, page_size=8, rows=(16,), num_parked=8)
    device, compiled = Device(model, sizes), one_step.step._cache_size()
    for seed in range(mixes):
        draw = np.random.default_rng(seed)
        own = requests(model, seed, int(draw.integers(1, 9)), Sampling(max_tokens=4, temperature=0.0))
        prompts = [one.tokens for one in own]
        wanted = [one.tokens for one in moejax.generate(model, prompts, max_tokens=4, batch_rows=8)]
        budget = int(draw.integers(2, 17))
        schedulers = Fcfs(16), Chunked(budget), Layered(unit=4, cap=8), Packing(16), SharedPrefix(budget)
        for scheduler in schedulers:
            state = ServeState(
                num_slots=int(draw.integers(1, 9)),
                pages=Pages(int(draw.integers(8, 49)), sizes.page_size),
                num_layers=model.cfg.num_layers,
            )
            assert tokens(device, own, scheduler, state) == wanted, (seed, scheduler, state.num_slots)
    assert one_step.step._cache_size() == compiled + 1


def tokens(device, own, scheduler, state) -> list[tuple[int, ...]]:
    """What the engine writes for every request."""
    written = [[] for _ in own]
    jobs = [Job(i, one.tokens, one.sampling.max_tokens, settings=one.sampling) for i, one in enumerate(own)]
    for step in engine.serve(jobs, scheduler, device, state, frozenset(device.model.tokenizer.ends)):
        for drawn in step.written:
            written[drawn.job].append(drawn.token)
    return [tuple(text) for text in written]


def test_one_compiled_step_serves_them_all(model):
    own = requests(model, 0, 5)
    texts(model, own, Fcfs(128))
    compiled = one_step.step._cache_size()
    for scheduler in SCHEDULERS.values():
        texts(model, own, scheduler)
    assert one_step.step._cache_size() <= compiled + 1  # a size of steps that the first had no use for


def test_no_bit_depends_on_batch_mates_chunks_or_found_pages(model):
    own, exact = requests(model, 1, 40), sizes_for(model, 64, exact=True)
    assert exact.rows == (64,)
    together = texts(model, own, Chunked(64), exact)
    for i in range(0, len(own), 9):
        assert texts(model, [own[i]], Chunked(64), exact) == [together[i]]  # log-probabilities by their bits
        assert texts(model, [own[i]], Chunked(3), exact) == [together[i]]
        assert texts(model, [own[i], own[i]], Fcfs(64), exact) == [together[i]] * 2  # the second finds pages
    assert (
        texts(model, own[20:], Layered(unit=16, cap=32), dataclasses.replace(exact, num_parked=32))
        == together[20:]
    )


def test_draws_with_a_seed_are_generate_s(model):
    settings = {"max_tokens": 8, "temperature": 1.0, "top_k": 20, "top_p": 0.9, "seed": 7}
    own = requests(model, 2, 6, Sampling(**settings))
    assert texts(model, own) == moejax.generate(model, [one.tokens for one in own], **settings)


def test_a_small_cache_makes_requests_wait_again_and_changes_nothing(model):
    own = requests(model, 3, 8)
    small = dataclasses.replace(SIZES, num_pages=9)
    assert texts(model, own, Chunked(64), small) == texts(model, own, Chunked(64))


def test_stop_texts_end_a_request_early(model):
    (plain,) = texts(model, requests(model, 4, 1))
    stop = plain.text[2:4]
    own = requests(model, 4, 3, dataclasses.replace(GREEDY, stop=(stop,)))
    found = texts(model, own)[0]
    assert (found.text, found.finish_reason) == (plain.text[: plain.text.index(stop)], "stop")


def test_what_a_batch_took_is_counted(model):
    own, counts = requests(model, 5, 4), Counts()
    done = dict(answer(model, own, Fcfs(64), SIZES, counts))
    written = sum(len(one.tokens) for one in done.values())
    read = sum(len(one.tokens) for one in own)
    assert sum(one.timing.cached_tokens for one in done.values()) == counts.shared
    # the last token of a text is not read again; a token that came too late for the host is
    assert read + written - len(own) - counts.shared <= counts.rows <= read + written
    assert 0 < counts.expert_loads <= counts.steps * 2 * 8
