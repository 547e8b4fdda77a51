"""Fitting phases into a run's memory budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from rlcm_cli.measuring.memory import fit_run
from rlcm_cli.wording import format_gb

if TYPE_CHECKING:
    from rlcm_cli.cli.display import Display
    from rlcm_cli.models.latent_model import LatentModel
    from rlcm_cli.runs.run import Run


def fit_memory(display: Display, *phases: Literal["sample", "train"]) -> Callable[[Run, LatentModel], Run]:
    """Make the function that fits phases into a run's memory budget, where it has one, and prints what it picks."""

    def fit(run: Run, model: LatentModel) -> Run:
        fitted, found = fit_run(run, model, phases)
        parts = []
        if found.sampling is not None:
            sliced = ", decoded one by one" if found.sampling.decode_slicing else ""
            sliced += ", parts offloaded" if found.sampling.offload else ""
            parts.append(f"{found.sampling.batch_size} images at once{sliced}: {format_gb(found.sampling.peak_bytes)}")
            display.summary["sampling_fit"] = asdict(found.sampling)
        if found.training is not None:
            checkpointed = " with gradient checkpointing" if found.training.gradient_checkpointing else ""
            size = f"micro-batch {found.training.micro_batch_size}{checkpointed}"
            parts.append(f"{size}: {format_gb(found.training.peak_bytes)}")
            display.summary["training_fit"] = asdict(found.training)
        if parts:
            display.say(f"memory budget {run.config.runtime.memory_budget}: {'; '.join(parts)}")
        return fitted

    return fit
