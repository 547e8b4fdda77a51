"""Phase 2: give the stored images their rewards, each reward in its own sidecar."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlcm_cli.errors import ConfigError, MissingFileError, RewardError, RunMismatchError
from rlcm_cli.events import Advanced, Event, PhaseSkipped, PhaseStarted, Warned
from rlcm_cli.processes.worker import Worker
from rlcm_cli.rewards import Reward, RewardSpec, is_address, is_code, load_reward
from rlcm_cli.runs.run import Run
from rlcm_cli.store.background import BackgroundWriter, writing_behind
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.reward_versions import claim_version, current_version, newest_scores
from rlcm_cli.store.rollouts import (
    RolloutShard,
    is_pruned,
    missing_rewards,
    missing_shards,
    publish_rewards,
    read_shard,
)
from rlcm_cli.store.score_cache import ScoreCache, digest_images, score_keys
from rlcm_cli.store.timings import timing
from rlcm_cli.wording import command

BATCH = 64
"""Images that a reward is given at once, rounded up to whole groups."""
READ_AHEAD = 2
"""Shards that are read while another is being scored."""


@dataclass(frozen=True)
class Scorer:
    """A loaded reward, with the tasks whose samples it scores and what it remembers."""

    spec: RewardSpec
    reward: Reward
    tasks: Sequence[str]
    cache: ScoreCache | None = None
    allow_changed: bool = False
    """The run may have been scored with other code, weights or another server of the reward before."""

    def claim(self, layout: RunLayout) -> str:
        """Make the version that is loaded the newest of a run, and name the folder of its scores.

        Raises as `check_unchanged`, and `ForeignFileError` where another process claims another one now.
        """
        if not self.reward.revision:
            return self.spec.directory
        self.check_unchanged(layout)
        version = claim_version(layout, self.spec.directory, self.spec.name, self.reward.revision)
        return version.scores_folder(self.spec.directory)

    def check_unchanged(self, layout: RunLayout) -> None:
        """Raise `RunMismatchError` where a run was last scored with another version, unless that is allowed."""
        name, revision = self.spec.name, self.reward.revision
        before = current_version(layout, self.spec.directory) if revision and not self.allow_changed else None
        if before is None or before.revision == revision:
            return
        what = "code" if is_code(name) else "server" if is_address(name) else "weights"
        raise RunMismatchError(
            f"{layout.root}: the {what} of reward {name} changed since the run last scored with it (revision "
            f"{before.revision[:12]} → {revision[:12]}), and scores of the two cannot be compared; put back what was "
            "there, start a new run, or continue with --allow-changed-code"
        )

    def has_changed(self, layout: RunLayout) -> bool:
        """Return whether a run was scored with other versions of this reward before."""
        version = current_version(layout, self.spec.directory) if self.reward.revision else None
        return version is not None and (version.number > 0 or version.revision != self.reward.revision)

    def score(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, object]],
        digests: Sequence[bytes],
        device: torch.device,
    ) -> Tensor:
        """Score B images as `Reward.score` does, those that the cache knows from there.

        `digests`: of the images, by `digest_images`.
        """

        def ask(rows: list[int]) -> Tensor:
            part = images[rows] if len(rows) < len(images) else images
            return self.reward.score(
                part.to(device) if self.reward.neural else part,
                [prompts[row] for row in rows],
                [metadata[row] for row in rows],
            )

        if self.cache is None or self.reward.set_level:
            return ask(list(range(len(images))))
        keys = score_keys(f"{self.spec.digest} {self.reward.revision}", prompts, digests)
        values = self.cache.look_up(keys)
        unknown = values.isnan().nonzero().flatten().tolist()
        if unknown:
            values[unknown] = ask(unknown)
            self.cache.remember([keys[row] for row in unknown], values[unknown])
        return values


def load_scorers(
    run: Run,
    names: Iterable[str] | None = None,
    cache: ScoreCache | None = None,
    *,
    allow_changed: bool = False,
) -> dict[str, Scorer]:
    """Load rewards of a run's configuration: those named, or all.

    Raises what `load_reward` raises, and `RunMismatchError` where what is behind a reward (its code, weights or
    server) is another than when the run last scored with it, unless `allow_changed` admits that. Raises `ConfigError`
    for a reward that people give and that is not trained for.
    """
    specs, scorers = run.reward_specs(), {}
    for name in specs if names is None else names:
        reward = load_reward(specs[name])
        if reward.by_people and not any(name in task.rewards for task in run.config.joint_tasks().values()):
            raise ConfigError(
                f"reward {name!r} is given by people and cannot be monitored; leave it out, and collect votes at any "
                f"time with `{command('vote', run.layout.root)}`"
            )
        scorers[name] = Scorer(specs[name], reward, run.scored_tasks(name), cache, allow_changed)
        scorers[name].check_unchanged(run.layout)
    return scorers


def score(
    run: Run,
    scorers: Mapping[str, Scorer],
    worker: Worker = Worker(),
    *,
    iterations: Sequence[int] | None = None,
    device: torch.device = torch.device("cpu"),
) -> Iterator[Event]:
    """Score the shards of this worker that lack a reward.

    `iterations`: whose; by default of every rollout that is not trained yet. `device`: of rewards that run a
    network. Raises `MissingFileError` where nothing was sampled, and, after all else is scored, where people have not
    given a reward that is theirs.
    """
    layout = run.layout
    for iteration in choose_iterations(run) if iterations is None else iterations:
        manifest = read_manifest(layout.manifest(iteration))
        absent = missing_shards(layout, manifest)
        if absent:
            yield Warned(
                f"rollout {iteration}: {len(absent)} of {len(manifest.shards)} shards are not sampled yet; "
                "run `rlcm sample`, then `rlcm score` again"
            )
        folders = {name: scorer.claim(layout) for name, scorer in scorers.items()}
        computed = [name for name, scorer in scorers.items() if not scorer.reward.by_people]
        missing = {name: missing_rewards(layout, manifest, folders[name]) for name in computed}
        todo = {
            number: names
            for number in range(len(manifest.shards))
            if number not in absent
            and worker.takes(number)
            and (names := [name for name in computed if number in missing[name]])
        }
        if not todo:
            require_votes(run, manifest, scorers)
            yield PhaseSkipped("score", iteration, "all sampled shards have their rewards")
            continue
        total = sum(len(manifest.samples_of(scorers[name].tasks, n)) for n, names in todo.items() for name in names)
        yield PhaseStarted("score", iteration, total, "images")
        with writing_behind() as writer:
            for number, shard, digests in read_ahead(layout, manifest, list(todo)):
                with timing(layout, iteration, "score", number):
                    for name in todo[number]:
                        yield from score_shard(layout, manifest, number, shard, digests, scorers[name], device, writer)
                    if number == [*todo][-1]:
                        writer.wait()
        require_votes(run, manifest, scorers)


def require_votes(run: Run, manifest: RolloutManifest, scorers: Mapping[str, Scorer]) -> None:
    """Raise `RewardError` where all of a rollout is sampled, and people have not given it a reward that is theirs."""
    layout, iteration = run.layout, manifest.iteration
    for name, scorer in scorers.items():
        folder = newest_scores(layout, iteration, scorer.spec.directory)
        absent = scorer.reward.by_people and missing_rewards(layout, manifest, folder)
        if absent and not missing_shards(layout, manifest):
            raise RewardError(
                f"{layout.rollout(iteration)}: reward {name!r} is given by people; collect their votes with "
                f"`{command('vote', layout.root)}`, then run the same command again"
            )


def choose_iterations(
    run: Run,
    wanted: Sequence[int] = (),
    *,
    everything: bool = False,
    worker: Worker = Worker(),
) -> list[int]:
    """List the rollouts to score: those wanted, else all that are stored, or all that are not trained yet.

    `worker`: whose shards must be stored.
    Raises `MissingFileError` where nothing was sampled, or not what is wanted.
    """
    layout = run.layout
    planned = layout.iterations()
    if not planned:
        raise MissingFileError(
            f"{layout.root}: holds no rollouts to score; draw some with `{command('sample', '--run', layout.root)}`"
        )
    absent = [iteration for iteration in wanted if iteration not in planned]
    if absent:
        raise MissingFileError(
            f"{layout.rollout(absent[0])}: there is no such rollout; `{command('inspect', layout.root)}` lists them"
        )
    if wanted:
        return list(wanted)
    if everything:
        manifests = [read_manifest(layout.manifest(iteration)) for iteration in planned]
        return [manifest.iteration for manifest in manifests if not is_pruned(layout, manifest, worker.takes)]
    trained = (layout.checkpoints() or [0])[-1]
    return [iteration for iteration in planned if iteration >= trained]


def read_ahead(
    layout: RunLayout, manifest: RolloutManifest, numbers: Sequence[int]
) -> Iterator[tuple[int, RolloutShard, list[bytes]]]:
    """Read shards in turn and digest their images, while those before them are being worked on.

    `READ_AHEAD` + 1 are in memory at most.
    """

    def read(number: int) -> tuple[int, RolloutShard, list[bytes]]:
        shard = read_shard(layout, manifest, number)
        return number, shard, digest_images(shard.images)

    with ThreadPoolExecutor(READ_AHEAD) as readers:
        coming = deque(readers.submit(read, number) for number in numbers[:READ_AHEAD])
        for following in [*numbers[READ_AHEAD:], *[None] * len(coming)]:
            found = coming.popleft().result()
            if following is not None:
                coming.append(readers.submit(read, following))
            yield found


def select(images: Tensor, rows: list[int]) -> Tensor:
    """Pick images; a view where the rows follow one another, since copying costs as much as a pixel reward."""
    first, stop = rows[0], rows[-1] + 1
    return images[first:stop] if stop - first == len(rows) else images[rows]


def score_shard(
    layout: RunLayout,
    manifest: RolloutManifest,
    number: int,
    shard: RolloutShard,
    digests: Sequence[bytes],
    scorer: Scorer,
    device: torch.device,
    writer: BackgroundWriter,
) -> Iterator[Event]:
    """Score the samples of a shard that are of the scorer's tasks, and have the rewards published.

    `digests`: of the shard's images.
    """
    samples = manifest.samples_of(scorer.tasks, number)
    rows = torch.tensor(samples, dtype=torch.int64) - manifest.shards[number][0]
    prompts = shard.sample_prompts()
    metadata: list[dict[str, Any]] = [
        {"iteration": manifest.iteration, "sample": sample, "seed": seed, "group": sample // manifest.group_size}
        for sample, seed in zip(shard.sample_index.tolist(), shard.seed.tolist(), strict=True)
    ]
    size = -(-BATCH // manifest.group_size) * manifest.group_size
    values = [torch.empty(0)]
    for part in torch.split(rows, size) if samples else ():
        picked = part.tolist()
        values.append(
            scorer.score(
                select(shard.images, picked),
                [prompts[row] for row in picked],
                [metadata[row] for row in picked],
                [digests[row] for row in picked],
                device,
            )
        )
        yield Advanced(len(picked))
    spec, folder = scorer.spec, scorer.claim(layout)
    identity = {
        "name": spec.name,
        "settings": spec.resolved,
        "digest": spec.digest,
        "revision": scorer.reward.revision,
    }
    rewards, index = torch.cat(values), shard.sample_index[rows]
    writer.submit(lambda: publish_rewards(layout, manifest, number, folder, identity, index, rewards))
