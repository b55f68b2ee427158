"""transformers' MixtralForCausalLM as a contestant: the same weights, batches, schedule and clipping.

All its implementations share one model and one optimizer, as nothing else fits in memory twice.
Importing this needs the extra `peers`.
"""

import json
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from moejax.config import Run
from moejax.training.optimizer import schedule

EXPERTS = ("eager", "grouped_mm", "batched_mm")
ATTENTION = ("sdpa", "eager")
UPDATES = ("fused", "foreach", "for-loop")
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


class Peer:
    """The model, and how it takes a step."""

    def __init__(self, run: Run, config: dict, weights: dict, batches: list[dict], threads: int):
        """
        Args:
          run: whose model, optimizer settings and balance weight are taken.
          config: the config.json of the model.
          weights: the arrays of its files, by name.
          batches: numpy columns token and target; step i takes batch i modulo their number.
          threads: of torch.
        """
        torch.set_num_threads(threads)
        self.optim = run.train.optim
        self.model = _model(run, config, weights)
        self.batches = [{k: torch.from_numpy(b[k]).long() for k in ("token", "target")} for b in batches]
        self.taken = 0
        self.rates = schedule(run.train.optim, run.train.steps)
        self.update_seconds = {kind: self._time_update(kind) for kind in UPDATES}
        self.update = min(self.update_seconds, key=self.update_seconds.get)
        self.optimizer = self._make_optimizer(self.update)

    def use(self, experts: str, attention: str) -> None:
        """Switch the implementations of the model."""
        self.model.set_experts_implementation(experts)
        self.model.set_attn_implementation(attention)

    @torch.no_grad()
    def next_token_loss(self) -> float:
        """Nats per target of the first batch, without any balance loss."""
        out = self._forward(self.batches[0])
        return float(out.loss - self.model.router_aux_loss_coef * out.aux_loss)

    def step(self) -> None:
        """Forward, backward, clip, AdamW."""
        self._forward(self.batches[self.taken % len(self.batches)]).loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates(self.taken))
        self._apply(self.optimizer)
        self.optimizer.zero_grad()
        self.taken += 1

    def _forward(self, batch):
        token_BT, target_BT = batch["token"], batch["target"]
        # With shift_labels the targets are taken as they are: every position has one, the last too.
        return self.model(token_BT, labels=target_BT, shift_labels=target_BT, use_cache=False)

    def _apply(self, optimizer) -> None:
        if self.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip_norm, foreach=True)
        optimizer.step()

    def _make_optimizer(self, kind: str) -> torch.optim.AdamW:
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.optim.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (self.optim.b1, self.optim.b2)
        how = {"fused": kind == "fused", "foreach": kind == "foreach"}
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=self.optim.eps, **how)

    def _time_update(self, kind: str, repeats: int = 3) -> float:
        """Seconds of clipping and one update, the best of some; at rate 0 no weight moves."""
        optimizer = self._make_optimizer(kind)
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-6)
        self._apply(optimizer)  # makes the moments
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._apply(optimizer)
            taken.append(time.perf_counter() - start)
        optimizer.zero_grad()
        return min(taken)


def implementations(run: Run, memory: int | None) -> Iterator[tuple[str, str, str | None]]:
    """(experts, attention, why it cannot run here or None) of everything that transformers offers."""
    for experts in EXPERTS:
        for attention in ATTENTION:
            needed = gathered_bytes(run) if experts == "batched_mm" else 0
            too_large = memory is not None and needed > memory // 2
            reason = f"copies expert weights for every token, {needed / 1e9:.0f} GB in a step"
            yield experts, attention, reason if too_large else None


def gathered_bytes(run: Run) -> int:
    """What `batched_mm` keeps for its backward pass: three matrices per token, slot and layer."""
    m, train = run.model, run.train
    ffn = m.groups[0].blocks[0].ffn
    matrices = 3 * m.width * ffn.hidden * np.dtype(np.float32).itemsize
    return train.batch_rows * train.seq_len * ffn.selector.num_slots * m.num_layers * matrices


def _model(run: Run, config: dict, weights: dict):
    settings = {"output_router_logits": True, "router_aux_loss_coef": _balance_weight(run)}
    with tempfile.TemporaryDirectory() as directory:
        save_file(weights, f"{directory}/model.safetensors", {"format": "pt"})
        with open(f"{directory}/config.json", "w", encoding="utf-8") as file:
            json.dump(config | settings, file)
        model, report = transformers.MixtralForCausalLM.from_pretrained(
            directory,
            attn_implementation="eager",
            experts_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    strange = {kind: names for kind, names in report.items() if names}
    if strange:
        raise RuntimeError(f"transformers {transformers.__version__} reads the weights otherwise: {strange}")
    return model.train()


def _balance_weight(run: Run) -> float:
    """The weight of the run's balance loss; theirs counts a token once per slot, so it is K times ours."""
    weights = [loss.weight for loss in run.train.losses if "Balance" in type(loss).__name__]
    return sum(weights) / run.model.groups[0].blocks[0].ffn.selector.num_slots
