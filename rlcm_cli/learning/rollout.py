"""An iteration's samples as training takes them: shards, conditioning and rewards, joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlcm_cli.core.noise import derive_seed
from rlcm_cli.core.padding import same_rows, stack_rows
from rlcm_cli.core.schedule import Schedule
from rlcm_cli.core.trajectory import Trajectories
from rlcm_cli.store.manifest import RolloutManifest
from rlcm_cli.store.rollouts import RolloutShard


@dataclass(frozen=True)
class Rollout:
    """An iteration's samples, in the order of their plan."""

    manifest: RolloutManifest
    schedule: Schedule
    trajectories: Trajectories
    conditioning: Mapping[str, Tensor]
    """Name → [U, …]."""
    conditioning_index: Tensor
    """int64 [B], row of each sample."""
    groups: Tensor
    """int64 [B], group of each sample: the images of one prompt drawn together."""
    prompts: list[str]
    tasks: list[str]
    """Task of each sample."""
    components: Mapping[str, Tensor]
    """Reward name → float32 [B]; NaN where the sample's task does not have it."""
    rewards: Tensor
    """The weighted sum of the rewards that the sample's task is trained for, float32 [B]."""
    revisions: Mapping[str, str]
    """Reward name → digest of what gave it, of the rewards that have one."""
    final_latents: Tensor | None = None
    """What was decoded, [B, C, h, w] in the model's dtype; None where the objective does not ask for it."""


@dataclass(frozen=True)
class JoinedShards:
    """What training takes of an iteration's shards: all but the images. The fields are those of `Rollout`."""

    trajectories: Trajectories
    conditioning: Mapping[str, Tensor]
    conditioning_index: Tensor
    prompts: list[str]
    final_latents: Tensor | None


def join_shards(shards: Iterable[RolloutShard], samples: int) -> JoinedShards:
    """Copy what training takes out of shards that follow one another, of so many samples in all.

    A shard as it is read is a mapped file, of which only what is looked at takes memory. Each is let go of before the
    next but one is read, so that memory holds the trajectories once and no images, however many there are.
    """
    latents, timesteps, calls = torch.empty(0), torch.empty(0), torch.empty(0)
    final: list[Tensor] = []
    log_probs: list[Tensor] = []
    conditioning, index = ConditioningTables(), []
    prompts: list[str] = []
    for shard in shards:
        part = shard.trajectories
        if not prompts:
            latents = part.latents_BSCHW.new_empty(samples, *part.latents_BSCHW.shape[1:])
            timesteps, calls = part.timesteps_A2.clone(), part.calls_A
        latents[len(prompts) : len(prompts) + len(part)] = part.latents_BSCHW
        log_probs.append(part.log_probs_BA.clone())
        if shard.final_latents is not None:
            final.append(shard.final_latents.clone())
        index.append(conditioning.add(shard))
        prompts += shard.sample_prompts()
    trajectories = Trajectories(latents, torch.cat(log_probs), timesteps, calls)
    final_latents = torch.cat(final) if final else None
    return JoinedShards(trajectories, conditioning.stack(), torch.cat(index), prompts, final_latents)


def join_conditioning(shards: Iterable[RolloutShard]) -> tuple[dict[str, Tensor], Tensor]:
    """Join the shards' conditioning tables: name → [U, …], and the row of each sample, int64 [B]."""
    tables = ConditioningTables()
    index = torch.cat([tables.add(shard) for shard in shards])
    return tables.stack(), index


@dataclass
class ConditioningTables:
    """The conditioning of several shards, in which equal rows of a prompt are kept once.

    A prompt is in most shards of an iteration; its rows may differ by rounding, where different machines encoded it.
    Each shard has its rows as long as those of its longest prompt.
    """

    _rows: list[dict[str, Tensor]] = field(default_factory=list)
    _of_prompt: dict[str, list[int]] = field(default_factory=dict)

    def add(self, shard: RolloutShard) -> Tensor:
        """Take the rows of a shard in; return the row of each of its samples, int64 [B]."""
        rows = [
            self._find_row(prompt, {name: table[number] for name, table in shard.conditioning.items()})
            for number, prompt in enumerate(shard.prompts)
        ]
        return torch.tensor(rows)[shard.prompt_index]

    def stack(self) -> dict[str, Tensor]:
        """Return the tables: name → [U, …]."""
        return {name: stack_rows([row[name] for row in self._rows]) for name in self._rows[0]}

    def _find_row(self, prompt: str, wanted: Mapping[str, Tensor]) -> int:
        known = self._of_prompt.setdefault(prompt, [])
        for row in known:
            if all(same_rows(self._rows[row][name], tensor) for name, tensor in wanted.items()):
                return row
        known.append(len(self._rows))
        self._rows.append({name: tensor.clone() for name, tensor in wanted.items()})
        return known[-1]


def sample_seed(manifest: RolloutManifest, sample: int) -> int:
    """Seed of the noise of a sample."""
    return derive_seed(manifest.run_seed, "train", manifest.iteration, sample)
