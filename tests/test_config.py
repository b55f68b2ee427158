"""Settings that cannot work are refused when they are written down, with what to change."""

import pytest

from configs import base
from moejax import overrides, records
from moejax.config import (
    BlockConfig,
    CheckpointConfig,
    DataConfig,
    Group,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.ffn.soft import Soft
from moejax.losses.next_token import NextToken
from moejax.losses.z_loss import RouterZ
from tests.contracts import tiny

BLOCK = BlockConfig(tiny.ATTN, Dense(8))
GROUPS = (Group((BLOCK,)),)
TRAIN = {"steps": 1, "batch_rows": 4, "seq_len": 8, "losses": (NextToken(),)}


def test_layers_are_counted_over_groups_and_blocks():
    """2 x 2 blocks and 1 x 1."""
    assert ModelConfig(8, 8, (Group((BLOCK, BLOCK), repeat=2), Group((BLOCK,)))).num_layers == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group(()), r"model.groups\[\].blocks is empty"),
        (lambda: Group((BLOCK,), repeat=0), r"repeat=0 must be at least 1"),
        (lambda: ModelConfig(1, 8, GROUPS), r"model.vocab=1 must be at least 2"),
        (lambda: ModelConfig(8, 8, ()), r"model.groups is empty"),
        (
            lambda: ModelConfig(8, 8, GROUPS, dtype="float16"),
            r"model.dtype='float16' is not one of float32, bfloat16",
        ),
        (
            lambda: ModelConfig(8, 8, GROUPS, remat="some"),
            r"model.remat='some' is not one of none, full, dots",
        ),
        (lambda: ModelConfig(8, 8, GROUPS, norm="batch"), r"norm='batch' is not one of rms, rms_plus_one"),
        (lambda: ModelConfig(8, 8, GROUPS, logit_scale=0.0), r"model.logit_scale=0.0 must be positive"),
        (lambda: BlockConfig(tiny.ATTN, Dense(8), residual_scale=0.0), r"residual_scale=0.0 must be positi"),
        (
            lambda: BlockConfig(tiny.ATTN, Dense(8), after=Soft(2, 8, 1, Local())),
            r"after=Soft looks at other tokens.*choose one that maps each token by itself, such as Dense",
        ),
        (lambda: OptimConfig(schedule="step"), r"schedule='step' is not one of constant, linear, cosine"),
        (lambda: OptimConfig(learning_rate=0.0), r"learning_rate=0.0 must be positive"),
        (lambda: CheckpointConfig(keep_last=0), r"keep_last=0 must be at least 1"),
        (lambda: TrainConfig(**TRAIN, accumulate=3), r"batch_rows=4 is not divisible by train.accumulate=3"),
        (lambda: TrainConfig(**{**TRAIN, "losses": ()}), r"train.losses holds nothing.*add NextToken\(\)"),
        (lambda: TrainConfig(**{**TRAIN, "losses": (RouterZ(),)}), r"train.losses holds RouterZ.*not"),
        (lambda: DataConfig(held_out=1.0), r"data.held_out=1.0 must lie between 0 and 1"),
        (lambda: MeshConfig(data=0), r"mesh.data=0 must be positive, or -1"),
        (lambda: MeshConfig(data=-1, fsdp=-1), r"mesh has -1 on data and fsdp"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_settings_that_a_config_of_old_does_not_have_take_their_defaults():
    known = (ModelConfig, Group, BlockConfig, *map(type, (tiny.ATTN, tiny.MOE.scorer, tiny.MOE.selector)))
    known += (Local, Dense, type(tiny.MOE))
    old = records.to_dict(tiny.model())
    for name in ("norm", "embed_scale", "logit_scale", "unembed_bias"):
        del old[name]
    for name in ("after", "post_norms", "residual_scale"):
        del old["groups"][0]["blocks"][1][name]
    assert records.from_dict(old, known) == tiny.model()


def test_rows_are_split_over_three_axes():
    assert MeshConfig(data=2, fsdp=3, expert=4, tensor=5).row_shards == 24


def test_zero_means_off_where_it_may():
    texts = {"train.eval_every": "0", "train.watchdog_seconds": "0", "train.optim.warmup_steps": "0"}
    run = overrides.apply(base.tiny(), texts | {"train.optim.b1": "0", "train.log_every": "1"})
    assert (run.train.eval_every, run.train.optim.b1) == (0, 0.0)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("train.steps", "0"),
        ("train.batch_rows", "0"),
        ("train.accumulate", "0"),
        ("train.log_every", "0"),
        ("train.eval_rows", "0"),
        ("train.max_skipped", "0"),
        ("train.seed", "-1"),
        ("train.eval_every", "-1"),
        ("train.verify_every", "-2"),
        ("train.watchdog_seconds", "-0.5"),
        ("train.optim.warmup_steps", "-5"),
        ("train.optim.b1", "1.0"),
        ("train.optim.b2", "-0.1"),
        ("train.optim.eps", "-0.5"),
        ("train.optim.weight_decay", "-1"),
        ("train.optim.final_fraction", "1.5"),
    ],
)
def test_numbers_out_of_range(path, text):
    with pytest.raises(UsageError) as refusal:
        overrides.override(base.tiny(), path, text)
    assert f"{path}={text}" in str(refusal.value)
