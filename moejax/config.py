"""Every setting of a run, as one tree of frozen records.

A recipe in `configs/` is a function that returns a `Run`. Strategies (attention, ffn, losses) are
frozen dataclasses held by value: the recipe imports the one it wants, and nothing here knows their names.
Constructors check what can be known without a device, so an impossible run never allocates.
"""

import dataclasses
from typing import Any

from moejax.errors import UsageError


def require(condition: bool, message: str) -> None:
    """Raise `UsageError(message)` unless `condition` holds."""
    if not condition:
        raise UsageError(message)


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One transformer block: an Attention and an Ffn strategy (see `moejax.seams`).

    Each branch reads a norm of the residual stream h and adds to it: h + residual_scale * f(norm(h)).
    """

    attn: Any
    ffn: Any
    after: Any = None  # a second Ffn, after the first one has been added (OpenMoE, arXiv 2402.01739)
    post_norms: bool = False  # what a branch gives is normed before it is added (Gemma 2, arXiv 2408.00118)
    residual_scale: float = 1.0  # of what every branch gives (Granite)

    def __post_init__(self):
        require(self.residual_scale > 0, f"residual_scale={self.residual_scale} must be positive")
        alone = self.after is None or (self.after.causal and not self.after.shared)
        require(
            alone,
            f"after={type(self.after).__name__} looks at other tokens or layers; "
            "choose one that maps each token by itself, such as Dense",
        )

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split one of the parts."""
        for part in (self.attn, self.ffn, *(() if self.after is None else (self.after,))):
            part.check_mesh(mesh)


@dataclasses.dataclass(frozen=True)
class Group:
    """A tuple of blocks that is scanned `repeat` times; uneven stacks are several groups."""

    blocks: tuple[BlockConfig, ...]
    repeat: int = 1

    def __post_init__(self):
        require(len(self.blocks) > 0, "model.groups[].blocks is empty; a group needs at least one block")
        require(self.repeat >= 1, f"model.groups[].repeat={self.repeat} must be at least 1")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model."""

    vocab: int  # number of token ids
    width: int  # D
    groups: tuple[Group, ...]
    tied: bool = True  # unembed with the transposed embedding table
    embed_scale: float = 1.0  # of the embedding table's rows, as the model reads them
    unembed_bias: bool = False  # a parameter per token id, added to the logits before they are scaled
    logit_scale: float = 1.0  # of the logits
    norm: str = "rms"  # rms | rms_plus_one (the scale is 1 + a parameter) | layer (mean 0, scale and bias)
    norm_eps: float = 1e-6
    dtype: str = "float32"  # of activations and matmuls: float32 | bfloat16
    param_dtype: str = "float32"  # in which parameters are stored and updated
    remat: str = "none"  # none | full | dots: what a block keeps for its backward pass
    scan: bool = True  # one compiled block per group; False unrolls the layers

    def __post_init__(self):
        require(self.vocab >= 2, f"model.vocab={self.vocab} must be at least 2")
        require(self.width >= 1, f"model.width={self.width} must be at least 1")
        require(len(self.groups) > 0, "model.groups is empty; a model needs at least one group of blocks")
        for name in ("dtype", "param_dtype"):
            value = getattr(self, name)
            known = ("float32", "bfloat16", "float64")
            require(value in known, f"model.{name}={value!r} is not one of {', '.join(known)}")
        for name in ("norm_eps", "embed_scale", "logit_scale"):
            require(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} must be positive")
        known = ("rms", "rms_plus_one", "layer")
        require(self.norm in known, f"model.norm={self.norm!r} is not one of {', '.join(known)}")
        known = ("none", "full", "dots")
        require(self.remat in known, f"model.remat={self.remat!r} is not one of {', '.join(known)}")

    @property
    def num_layers(self) -> int:
        """L: blocks that one token passes."""
        return sum(group.repeat * len(group.blocks) for group in self.groups)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with a warm-up, a schedule and clipping."""

    learning_rate: float = 1e-3  # at the end of the warm-up
    warmup_steps: int = 50
    schedule: str = "cosine"  # constant | linear | cosine, from the peak to final_fraction of it
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_min_rank: int = 2  # parameters with fewer dims of their own (norm scales, biases) are not decayed
    clip_norm: float = 1.0  # global gradient norm; 0 turns clipping off

    def __post_init__(self):
        known = ("constant", "linear", "cosine")
        require(
            self.schedule in known, f"train.optim.schedule={self.schedule!r} is not one of {', '.join(known)}"
        )
        require(self.learning_rate > 0, f"train.optim.learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"train.optim.warmup_steps={self.warmup_steps} must not be negative")
        require(
            0 <= self.final_fraction <= 1,
            f"train.optim.final_fraction={self.final_fraction} must lie between 0 and 1",
        )
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"train.optim.{name}={value} must be at least 0 and below 1")
        require(self.eps > 0, f"train.optim.eps={self.eps} must be positive")
        require(self.weight_decay >= 0, f"train.optim.weight_decay={self.weight_decay} must not be negative")
        require(
            self.clip_norm >= 0,
            f"train.optim.clip_norm={self.clip_norm} must not be negative; 0 turns it off",
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, what to keep, how hard to check."""

    every: int = 100  # steps between saves; the last step is always saved
    keep_last: int = 3
    keep_every: int = 0  # also keep every step divisible by this; 0 keeps none of them
    keep_best: bool = False  # also keep the step with the lowest held-out loss
    verify: str = "full"  # on restore: full (hashes) | size | off
    on_disk_full: str = "continue"  # continue | stop
    max_failures: int = 3  # failed saves in a row that end the run

    def __post_init__(self):
        require(self.every >= 1, f"train.checkpoint.every={self.every} must be at least 1")
        require(self.keep_last >= 1, f"train.checkpoint.keep_last={self.keep_last} must be at least 1")
        require(
            self.keep_every >= 0,
            f"train.checkpoint.keep_every={self.keep_every} must not be negative; 0 = off",
        )
        require(
            self.max_failures >= 1, f"train.checkpoint.max_failures={self.max_failures} must be at least 1"
        )
        known = ("full", "size", "off")
        require(
            self.verify in known, f"train.checkpoint.verify={self.verify!r} is not one of {', '.join(known)}"
        )
        known = ("continue", "stop")
        require(
            self.on_disk_full in known,
            f"train.checkpoint.on_disk_full={self.on_disk_full!r} is not one of {', '.join(known)}",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, towards what."""

    steps: int
    batch_rows: int  # rows of one optimiser step, over all devices and micro-batches
    seq_len: int  # T
    losses: tuple[Any, ...]  # Loss strategies; their weighted sum is minimised
    accumulate: int = 1  # micro-batches per optimiser step
    optim: OptimConfig = OptimConfig()
    rules: tuple[Any, ...] = ()  # Rule strategies, each around the optimizer and the rules before it
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = 0
    log_every: int = 10
    eval_every: int = 100  # steps between evaluations; 0 evaluates only at the end
    eval_rows: int = 64  # held-out rows per evaluation during training; the last one takes all of them
    trace_every: int = 0  # steps between routing traces of the training rows, in RUN/traces; 0 writes none
    trace_rows: int = 8  # rows of a batch (of its first micro-batch) in such a trace
    max_skipped: int = 10  # updates skipped in a row (not finite, or a spike) that end the run
    spike_factor: float = 0.0  # skip an update whose loss exceeds this times the running mean; 0 never does
    verify_every: int = 0  # steps between runs of one step twice, against silent corruption; 0 never does
    watchdog_seconds: float = 600.0  # without a finished step before the run is called hung; 0 turns it off

    def __post_init__(self):
        counts = ("steps", "batch_rows", "accumulate", "log_every", "eval_rows", "trace_rows", "max_skipped")
        for name in counts:
            require(getattr(self, name) >= 1, f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("seed", "eval_every", "trace_every", "verify_every", "watchdog_seconds"):
            require(getattr(self, name) >= 0, f"train.{name}={getattr(self, name)} must not be negative")
        require(self.seq_len >= 2, f"train.seq_len={self.seq_len} must be at least 2")
        names = ", ".join(type(loss).__name__ for loss in self.losses) or "nothing"
        require(
            any(loss.measures_text for loss in self.losses),
            f"train.losses holds {names}, which does not measure text, so there would be no held-out loss; "
            "add NextToken()",
        )
        require(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"train.spike_factor={self.spike_factor} must be above 1, or 0 to turn it off",
        )
        require(
            self.batch_rows % self.accumulate == 0,
            f"train.batch_rows={self.batch_rows} is not divisible by train.accumulate={self.accumulate}; "
            "choose a batch that splits into equal micro-batches",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and what happens to what cannot be read."""

    source: tuple[
        str, ...
    ] = ()  # files, globs, directories, .jsonl, .gz; empty = the standard library's source
    field: str = "text"  # of a .jsonl record
    held_out: float = 0.05  # share of the text that is never trained on, whole documents
    on_error: str = "skip"  # skip | stop at the first unreadable record
    max_record_mb: float = 16.0  # longer records count as errors
    tokenizer: str = "bpe"  # bpe (trained on the corpus, model.vocab ids) | bytes | path of a tokenizer.json
    cache_dir: str = ""  # for tokenizers and packed corpora; empty = $XDG_CACHE_HOME/moejax

    def __post_init__(self):
        require(
            not isinstance(self.source, str),
            f"data.source={self.source!r} must be a tuple of paths: ({self.source!r},)",
        )
        require(0 < self.held_out < 1, f"data.held_out={self.held_out} must lie between 0 and 1")
        known = ("skip", "stop")
        require(self.on_error in known, f"data.on_error={self.on_error!r} is not one of {', '.join(known)}")
        require(self.max_record_mb > 0, f"data.max_record_mb={self.max_record_mb} must be positive")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 on one axis takes what the others leave."""

    data: int = 1  # rows of the batch
    fsdp: int = 1  # rows of the batch, and the parameters' embed dim
    expert: int = 1  # rows of the batch, and whole experts
    tensor: int = 1  # heads, expert width and vocabulary

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(
                size >= 1 or size == -1,
                f"mesh.{name}={size} must be positive, or -1 for the remaining devices",
            )
        require(
            list(sizes.values()).count(-1) <= 1,
            f"mesh has -1 on {' and '.join(n for n, s in sizes.items() if s == -1)}; "
            "at most one axis can be inferred",
        )

    @property
    def row_shards(self) -> int:
        """Devices over which the rows of a batch are split."""
        return self.data * self.fsdp * self.expert


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a training run is; `train.py` takes nothing else but the directory to keep it in."""

    name: str
    model: ModelConfig
    train: TrainConfig
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        if -1 not in dataclasses.astuple(self.mesh):  # else the mesh is checked once its devices are known
            self._check_mesh()

    def _check_mesh(self) -> None:
        mesh, train = self.mesh, self.train
        micro_rows = train.batch_rows // train.accumulate
        require(
            micro_rows % mesh.row_shards == 0,
            f"a micro-batch of train.batch_rows/train.accumulate={micro_rows} rows does not split over "
            f"mesh.data*mesh.fsdp*mesh.expert={mesh.row_shards} devices; "
            f"choose a multiple of {mesh.row_shards}",
        )
        for name, size, axis in (("vocab", self.model.vocab, "tensor"), ("width", self.model.width, "fsdp")):
            parts = getattr(mesh, axis)
            require(
                size % parts == 0,
                f"model.{name}={size} is not divisible by mesh.{axis}={parts}; "
                "choose one that divides the other",
            )
        for block in (block for group in self.model.groups for block in group.blocks):
            block.check_mesh(mesh)
