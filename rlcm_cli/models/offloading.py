"""Parts of a model that are on its device only while they work: the denoiser and the autoencoder take turns.

By the hooks that diffusers' `enable_model_cpu_offload` sets, on the two parts that a loaded model always has. They
move a part when it is called, and the other one to the CPU before. Trained weights go with their denoiser.
"""

from __future__ import annotations

import logging

from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module

from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries

_log = logging.getLogger(__name__)


def offload_parts(model: LatentModel) -> None:
    """Move the denoiser and the autoencoder to the CPU, and each back while it works."""
    if model.device.type == "cpu":
        _log.warning("offload has no effect on the device cpu, where all parts are in its memory")
        return
    with quiet_libraries():
        _, denoiser = cpu_offload_with_hook(model.denoiser, model.device)
        _, autoencoder = cpu_offload_with_hook(model.pipeline.vae, model.device, prev_module_hook=denoiser)
    denoiser.hook.prev_module_hook = autoencoder


def keep_parts(model: LatentModel) -> None:
    """Have the denoiser and the autoencoder on the device from now on, as they are without `offload_parts`."""
    for part in (model.denoiser, model.pipeline.vae):
        if hasattr(part, "_hf_hook"):
            remove_hook_from_module(part)
            with quiet_libraries():
                part.to(model.device)


def bring_denoiser(model: LatentModel) -> None:
    """Have the denoiser on the device until the autoencoder is called: what an optimizer keeps lies beside it."""
    hook = getattr(model.denoiser, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(model.denoiser)


def is_offloaded(model: LatentModel) -> bool:
    """Return whether the parts of a model take turns."""
    return hasattr(model.denoiser, "_hf_hook")
