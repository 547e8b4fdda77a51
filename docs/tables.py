"""Write the generated parts of these pages from the package: each stands between a line that names it and an end mark.

python docs/tables.py
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import rlcm_cli
from rlcm_cli.measuring.footprint import ADAPTER_BYTES, Footprint
from rlcm_cli.objectives import OBJECTIVES, Need
from rlcm_cli.prompts.named_sets import NAMED_SETS
from rlcm_cli.rewards import REWARDS
from rlcm_cli.samplers import SAMPLERS
from rlcm_cli.store import shards

FOLDER = Path(__file__).parent
PRESETS = Path(rlcm_cli.__file__).with_name("tasks")
CARDS = (8, 12, 16, 24, 48, 80)
"""GPU memory in GB."""
RESERVE = 1e9
"""Bytes of a card that stay free, for all that is not counted."""
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Bring every page up to date."""
    for page in sorted(FOLDER.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        current = fill(text)
        if current != text:
            page.write_text(current, encoding="utf-8")
            print(f"{page.relative_to(FOLDER)}: updated")


def fill(text: str) -> str:
    """Return a page with its tables as the package has them now."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", text)


def list_rewards() -> str:
    """List the rewards."""
    rows = []
    for name, entry in REWARDS.items():
        notes = ["differentiable"] if entry.differentiable else []
        notes += ["all images of a prompt together"] if entry.set_level else []
        rows.append([code(name), entry.description, entry.value_range, entry.requirements, ", ".join(notes)])
    rows.append([code("FILE.py:FUNCTION"), "any Python function of images", "any", "your code", ""])
    rows.append([code("http://HOST:8000/NAME"), "what `rlcm serve-reward NAME` serves there", "any", "a server", ""])
    return table(["reward", "measures", "range", "needs", "notes"], rows)


def list_prompt_sets() -> str:
    """List the prompt sets that have a name, where they are read from, and their licences."""
    rows = []
    for name, found in NAMED_SETS.items():
        place = f"`{found.repository}`" if found.repository else f"a copy: `--prompts {name}:PATH`"
        files = ", ".join(code(file) for file in found.files)
        rows.append([code(name), found.title, f"{found.count:,}", place, files, found.licence, f"<{found.source}>"])
    return table(["name", "set", "prompts", "read from", "files", "licence", "source"], rows)


def list_samplers() -> str:
    """List the samplers."""
    rows = [
        [
            code(kind),
            first_sentence(sampler.settings.__doc__),
            code(sampler.scheduler),
            list_settings("sampler", sampler.default_settings().model_dump()),
            sampler.steps,
            "yes" if sampler.noise_on_last_call else "no",
        ]
        for kind, sampler in SAMPLERS.items()
    ]
    return table(
        ["`--sampler`", "what it is", "scheduler of diffusers", "settings (default)", "steps", "`--last-step noise`"],
        rows,
    )


def list_all_objectives() -> str:
    """List the objectives."""
    rows = [
        [
            code(kind),
            first_sentence(objective.settings.__doc__),
            list_settings("objective", objective.settings().model_dump()),
            ", ".join(need.value for need in Need if need in objective.needs),
            ", ".join(objective.advantages.admitted),
        ]
        for kind, objective in OBJECTIVES.items()
    ]
    return table(
        ["`--objective`", "what it does", "settings (default)", "needs", "`train.advantages`, first the default"], rows
    )


def list_presets() -> str:
    """List the presets."""
    rows = []
    for file in sorted(PRESETS.glob("*.toml")):
        text = file.read_text(encoding="utf-8")
        published = tomllib.loads(text)
        embedded = published["embedded"]
        papers = list(dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", text)))
        rows.append(
            [
                code(file.stem),
                text.splitlines()[0].removeprefix("# ").partition(" (")[0].rstrip("."),
                f"{published['sampler']['kind']}, {published['objective']['kind']}",
                describe_run(published, {}),
                describe_run(published, embedded),
                ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers),
            ]
        )
    return table(
        ["`--task`", "for", "sampler, objective", "published values", "on the embedded model", "source"], rows
    )


def list_sizes() -> str:
    """List what architectures consist of, and what their work costs."""
    rows = []
    for name, found in read_footprints().items():
        height, width = found.image_size
        weights = [found.text_encoders.count_bytes(), *(found.denoiser.count_bytes(bits) for bits in (16, 8, 4))]
        flops = (found.flops.call, found.flops.decode, found.flops.transition)
        rows.append(
            [
                code(name),
                f"{width} × {height}",
                *(gigabytes(count) for count in [*weights, found.autoencoder.count_bytes()]),
                *(f"{count / 1e12:.3g}" for count in flops),
            ]
        )
    head = ["architecture", "pixels", "text encoders", "denoiser", "8 bits", "4 bits", "autoencoder"]
    return table([*head, "TFLOP per call", "decoding", "transition"], rows)


def list_activations() -> str:
    """List what work takes beside the weights."""
    rows = []
    for name, found in read_footprints().items():
        taken = found.activations
        counts = (taken.call, taken.decode, taken.transition, taken.checkpointed, ADAPTER_BYTES * found.adapter)
        rows.append([code(name), *(gigabytes(count) for count in counts)])
    head = ["architecture", "model call", "decoding", "training on a transition", "with checkpointing"]
    return table([*head, "LoRA and Adam"], rows)


def list_drawing_fits() -> str:
    """List the cards that architectures can be drawn on."""
    ways = {
        "text kept": {"bits": 16, "keeps_text": True},
        "text dropped": {"bits": 16, "keeps_text": False},
        "4 bits, text kept": {"bits": 4, "keeps_text": True},
        "4 bits, text dropped": {"bits": 4, "keeps_text": False},
    }
    return list_fits(lambda found: {way: found.drawing_bytes(**asked) for way, asked in ways.items()})


def list_training_fits() -> str:
    """List the cards that a LoRA can be trained on."""
    ways = {
        "text kept": {"bits": 16, "checkpointing": False, "keeps_text": True},
        "16 bits": {"bits": 16, "checkpointing": False, "keeps_text": False},
        "checkpointing": {"bits": 16, "checkpointing": True, "keeps_text": False},
        "4 bits, checkpointing": {"bits": 4, "checkpointing": True, "keeps_text": False},
    }
    return list_fits(lambda found: {way: found.training_bytes(**asked) for way, asked in ways.items()})


def list_fits(count_ways: Callable[[Footprint], Mapping[str, int]]) -> str:
    """List cards, and the first of some ways that fits each with what it takes."""
    rows = []
    for name, found in read_footprints().items():
        cells = []
        for card in CARDS:
            fitting = [(way, need) for way, need in count_ways(found).items() if need + RESERVE <= card * 1e9]
            cells.append(f"{fitting[0][0]}: {gigabytes(fitting[0][1])}" if fitting else "—")
        rows.append([code(name), *cells])
    return table(["architecture", *(f"{card} GB" for card in CARDS)], rows)


def read_footprints() -> dict[str, Footprint]:
    """Read what docs/footprints.py computed."""
    return TypeAdapter(dict[str, Footprint]).validate_json((FOLDER / "footprints.json").read_bytes())


def gigabytes(count: int) -> str:
    """Write bytes as gigabytes of 10⁹."""
    return f"{count / 1e9:.1f}" if count >= 1e9 else f"{count / 1e9:.2f}"


def quote_specification() -> str:
    """Quote the specification of the file format."""
    return f"```text\n{(shards.__doc__ or '').strip()}\n```\n"


def describe_run(published: Mapping[str, Any], embedded: Mapping[str, Any]) -> str:
    """Describe the size of a preset's run and its rewards."""

    def find(section: str, key: str) -> Any:
        return {**published[section], **embedded.get(section, {})}[key]

    rewards = embedded.get("rewards", published["rewards"])
    weighed = " + ".join(name if weight == 1 else f"{weight:g} × {name}" for name, weight in rewards.items())
    size = f"{find('runtime', 'iterations'):,} × {find('sample', 'samples'):,} images"
    return f"{weighed}; H = {find('sample', 'steps')}; {size}"


def list_settings(section: str, values: Mapping[str, Any]) -> str:
    """List settings with their defaults."""
    return ", ".join(f"`{section}.{name}` ({value})" for name, value in values.items() if name != "kind")


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring, on one line."""
    return " ".join((text or "").split("\n\n")[0].split()).rstrip(".")


def code(name: str) -> str:
    """Put a name between backquotes."""
    return f"`{name}`"


def table(head: list[str], rows: Iterable[list[Any]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines) + "\n"


TABLES: Mapping[str, Callable[[], str]] = {
    "rewards": list_rewards,
    "prompt_sets": list_prompt_sets,
    "samplers": list_samplers,
    "objectives": list_all_objectives,
    "presets": list_presets,
    "specification": quote_specification,
    "sizes": list_sizes,
    "activations": list_activations,
    "drawing_fits": list_drawing_fits,
    "training_fits": list_training_fits,
}

if __name__ == "__main__":
    main()
