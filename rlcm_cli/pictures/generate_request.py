"""What a user asks to be drawn, and the plan that is made of it: new images, a picture again, or a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.pictures.csv_batch import plan_table
from rlcm_cli.pictures.drawing import Adapter, find_lora, plan_images
from rlcm_cli.pictures.generate import Plan
from rlcm_cli.pictures.grid import Ways, plan_axes
from rlcm_cli.pictures.png_metadata import Provenance, find_recorded_lora, read_provenance, settle_model
from rlcm_cli.prompts.text import find_text_fault


@dataclass(frozen=True)
class Request:
    """Options of `rlcm generate`; what is empty or None was not given."""

    prompts: Sequence[str] = ()
    loras: Sequence[str] = ()
    scales: Sequence[float] = ()
    steps: Sequence[int] = ()
    compare_base: bool = False
    count: int = 1
    seed: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `ModelSettings`."""
    sample: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `SampleSettings`, but for the steps."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """Its kind, and settings of it."""
    from_image: Path | None = None
    batch: Path | None = None


def plan_request(request: Request) -> Plan:
    """Plan what is asked for. Raises `ConfigError`, `ModelError` or `StoreError` for what cannot be."""
    if request.batch:
        return _plan_batch(request, request.batch)
    if request.from_image:
        return _plan_again(request, read_provenance(request.from_image))
    check_prompts(request.prompts)
    return _plan(request, [find_lora(place) for place in request.loras])


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise `ConfigError` where there is no prompt, an empty one, or one that cannot be stored as text."""
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ConfigError("no prompt given; use --prompt TEXT (repeatable) or --prompts FILE")
    for prompt in prompts:
        if fault := find_text_fault(prompt):
            raise ConfigError(f"the prompt {prompt!a} {fault}; write it in UTF-8")


def _plan(request: Request, loras: Sequence[Adapter]) -> Plan:
    return plan_axes(
        plan_images(request.prompts, count=request.count, seed=request.seed or 0),
        request.count,
        Ways(loras, request.scales or (1.0,), request.steps or (None,), request.compare_base),
        model=request.model,
        sample=request.sample,
        sampler=request.sampler,
    )


def _plan_again(request: Request, recorded: Provenance) -> Plan:
    """Put what is asked for over what a picture says of itself."""
    check_prompts(request.prompts or [recorded.spec.prompt])
    loras = [find_lora(place) for place in request.loras]
    if not loras:
        found = find_recorded_lora(recorded)
        loras = [found] if found else []
    warnings = [
        f"{recorded.file}: was drawn with another LoRA than {lora.name}, by their digests"
        for lora in loras
        if recorded.lora_digest and lora.digest != recorded.lora_digest
    ]
    asked = {key: value for key, value in request.model.items() if value is not None}
    own = {key: value for key, value in request.sample.items() if value is not None}
    sampler = {key: value for key, value in request.sampler.items() if value is not None}
    same_kind = sampler.get("kind") in (None, recorded.sampler["kind"])
    again = replace(
        request,
        prompts=request.prompts or [recorded.spec.prompt],
        seed=recorded.spec.seed if request.seed is None else request.seed,
        scales=request.scales or ((recorded.scale,) if recorded.lora else ()),
        steps=request.steps or (recorded.steps,),
        model={**settle_model(recorded, loras[0] if loras else None, asked.get("name")), **asked},
        sample={**recorded.sample, **own},
        sampler={**recorded.sampler, **sampler} if same_kind else sampler,
    )
    plan = _plan(again, loras)
    drawings = plan.drawings
    if plan.images == 1:
        drawings = [replace(drawings[0], place_in_batch=recorded.place_in_batch)]
    digest = None if asked or "kind" in sampler else recorded.model_digest
    return replace(plan, drawings=drawings, warnings=warnings, model_digest=digest, sources=[recorded.file])


def _plan_batch(request: Request, file: Path) -> Plan:
    several = {
        "--steps": len(request.steps) > 1,
        "--scale": len(request.scales) > 1,
        "--lora": len(request.loras) > 1,
        "--count": request.count > 1,
        "--compare-base": request.compare_base,
    }
    beside = {"--prompt": bool(request.prompts), "--from-image": request.from_image is not None}
    for flag, given in {**several, **beside}.items():
        if given:
            advice = (
                "give one value, or a column of the table"
                if flag in ("--steps", "--scale", "--lora")
                else "leave it out"
            )
            raise ConfigError(f"{flag} with --batch, which draws each row of its table once; {advice}")
    return plan_table(
        file,
        seed=request.seed or 0,
        adapter=find_lora(request.loras[0]) if request.loras else None,
        scale=request.scales[0] if request.scales else 1.0,
        model=request.model,
        sample={**request.sample, "steps": request.steps[0] if request.steps else None},
        sampler=request.sampler,
    )
