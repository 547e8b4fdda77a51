"""`rlcm evaluate` of images of one's own prompts: drawn into a folder, or stored there before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.cli.checkpoints import name_checkpoint
from rlcm_cli.cli.evaluate_run import Manner
from rlcm_cli.wording import command, count, slug

if TYPE_CHECKING:
    from rlcm_cli.cli.display import Display
    from rlcm_cli.judging.summary import Judgement
    from rlcm_cli.judging.ways import Way
    from rlcm_cli.rewards import RewardSpec

FOLDER = Path("evaluations")
REWARD_SETTINGS = "reward_settings"


@dataclass(frozen=True)
class ToDraw:
    """What is drawn; what is empty or None was not given."""

    prompts: str
    """Where the prompts come from."""
    most: int | None = None
    """Number of them that are drawn; None: all."""
    places: Sequence[str] = ()
    """LoRAs: files, runs, checkpoints or hub ids."""
    run: str | None = None
    checkpoints: Sequence[str] = ()
    """Of the run."""
    base: bool = True
    steps: Sequence[int] = ()
    guidance: Sequence[float] = ()
    count: int = 1
    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None


def evaluate_drawn(drawn: ToDraw, rewards: Sequence[str], manner: Manner) -> None:
    """Draw the images that a folder lacks, and score them."""
    from rlcm_cli.cli.display import Display
    from rlcm_cli.judging.drawing import draw_ways
    from rlcm_cli.judging.folder import check_folder

    specs = read_rewards(rewards, manner.assignments)
    ways, folder, notes = plan(drawn)
    check_folder(folder)
    display = Display(quiet=manner.quiet, as_json=manner.as_json)
    display.say_all(notes)
    device = str(manner.settings.get("runtime.device") or "auto")
    offload = bool(manner.settings.get("runtime.offload"))
    display.follow(draw_ways(ways, folder, device, offload=offload))
    judge(folder, specs, manner, display)


def evaluate_stored(folder: Path, rewards: Sequence[str], manner: Manner) -> None:
    """Score the images of a folder, without a model."""
    from rlcm_cli.cli.display import Display

    display = Display(quiet=manner.quiet, as_json=manner.as_json)
    judge(folder, read_rewards(rewards, manner.assignments), manner, display)


def plan(drawn: ToDraw) -> tuple[list[Way], Path, list[str]]:
    """Plan the ways, choose the folder, and say which checkpoints were chosen."""
    from rlcm_cli.config import EMBEDDED_MODEL
    from rlcm_cli.judging.ways import Wanted, plan_ways
    from rlcm_cli.pictures.drawing import find_lora, show_name
    from rlcm_cli.pictures.generate_request import check_prompts
    from rlcm_cli.prompts import load_prompts
    from rlcm_cli.prompts.named_sets import NAMED_SETS, split_name

    named = split_name(drawn.prompts)
    prompts = load_prompts(drawn.prompts)[: drawn.most]
    check_prompts(prompts)
    texts: Sequence[str | None] = drawn.checkpoints or [None]
    found = [name_checkpoint(drawn.run, text) for text in texts] if drawn.run is not None else []
    found += [name_checkpoint(place, None) for place in drawn.places]
    adapters = [find_lora(place) for place, _ in dict(found).items()]
    wanted = Wanted(
        prompts,
        adapters,
        base=drawn.base,
        steps=drawn.steps,
        guidance=drawn.guidance,
        count=drawn.count,
        seed=drawn.seed,
        model=drawn.model,
        sampler=drawn.sampler,
    )
    name = drawn.run or next(iter(drawn.places), None) or drawn.model.get("name") or EMBEDDED_MODEL
    usual = FOLDER / slug(f"{Path(show_name(name)).stem} {Path(drawn.prompts).stem}")
    notes = [NAMED_SETS[named[0]].describe()] if named else []
    return plan_ways(wanted), drawn.out or usual, [*notes, *(note for _, own in found for note in own)]


def judge(folder: Path, specs: Sequence[RewardSpec], manner: Manner, display: Display) -> None:
    """Score the images of a folder, and show what the rewards say of them."""
    from rlcm_cli.cli.judgements import show_judgements
    from rlcm_cli.core.device import select_device
    from rlcm_cli.judging.folder import RESULTS, REWARD, SUMMARY, read_results, summarise
    from rlcm_cli.judging.scoring import load_judges, score_folder
    from rlcm_cli.judging.summary import to_json
    from rlcm_cli.store.score_cache import open_cache

    device = select_device(str(manner.settings.get("runtime.device") or "auto"))
    with open_cache(wanted=manner.cache) as cache:
        display.follow(score_folder(folder, load_judges(specs, cache), device))
    rows = read_results(folder).rows
    judgements: list[Judgement] = summarise(rows)
    show_judgements(judgements, display, "images of")
    display.say(f"{folder / RESULTS}: a row for each image; {SUMMARY}: the table")
    rewards = list(dict.fromkeys(found.reward for found in judgements))
    unscored = sum(any(row.get(REWARD + name) is None for name in rewards or ["NAME"]) for row in rows)
    if unscored:
        words = [word for name in rewards or ["NAME"] for word in ("--reward", name)]
        again = command("evaluate", "--images", folder, *words)
        display.say(f"{count(unscored, 'image')} {'has' if unscored == 1 else 'have'} no score yet; next: {again}")
    display.finish({"out": str(folder), "images": len(rows), "judged": [to_json(found) for found in judgements]})


def read_rewards(names: Sequence[str], assignments: Sequence[str]) -> list[RewardSpec]:
    """Return the rewards of a command line with their settings. Raises `ConfigError` for other settings."""
    from rlcm_cli.config import parse_assignment, split_key
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.rewards import RewardSpec

    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in assignments:
        key, value = parse_assignment(text)
        section, *rest = split_key(key)
        if section != REWARD_SETTINGS or len(rest) != 2 or rest[0] not in settings:
            raise ConfigError(
                f"--set {key}: without a run's held-out images only settings of the rewards can be set, such as "
                f"{REWARD_SETTINGS}.{next(iter(names), 'NAME')}.KEY=VALUE"
            )
        settings[rest[0]][rest[1]] = value
    specs = [RewardSpec(name, own) for name, own in settings.items()]
    for spec in specs:
        _ = spec.resolved
    return specs
