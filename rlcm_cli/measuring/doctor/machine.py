"""Python, torch, the devices it can use, memory."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

import psutil

from rlcm_cli.measuring.doctor.finding import Finding
from rlcm_cli.wording import format_size

OLDEST_PYTHON = (3, 11)
SMALL_MEMORY = 4e9
DRIVER_SECONDS = 5.0


def check_python() -> Finding:
    """Report which Python runs."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "problem", found, "use Python 3.11 or newer")
    return Finding("python", "ok", found)


def check_memory() -> Finding:
    """Report how much memory there is, and is free."""
    memory = psutil.virtual_memory()
    found = f"{format_size(memory.available)} of {format_size(memory.total)} free"
    if memory.available < SMALL_MEMORY:
        advice = "the embedded model needs 1 GB; for Stable Diffusion close other programs, or use another machine"
        return Finding("memory", "note", found, advice)
    return Finding("memory", "ok", found)


def check_torch() -> Iterator[Finding]:
    """Report torch's version and build, then every device with the types it can compute in."""
    try:
        import torch
    except (ImportError, OSError) as error:
        advice = "install it again, as pytorch.org/get-started says for this machine"
        yield Finding("torch", "problem", f"cannot be imported ({type(error).__name__}: {error})", advice)
        return
    hip = getattr(torch.version, "hip", None)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {hip}" if hip else "CPU only"
    yield Finding("torch", "ok", f"{torch.__version__}, built for {build}")
    yield from _check_gpus()
    mps = torch.backends.mps.is_available()
    if mps:
        yield _check_types("mps", "Apple GPU")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield _check_types("cpu", f"{cores} cores, of which torch uses {torch.get_num_threads()}")
    if not (torch.cuda.is_available() or mps):
        advice = "the embedded model trains in minutes; Stable Diffusion takes a GPU of 16 GB or more"
        yield Finding("gpu", "note", "none that torch can use", advice)


def _check_gpus() -> Iterator[Finding]:
    import torch

    driver = _read_driver()
    if not torch.cuda.is_available():
        if driver:
            advice = (
                "get a build for CUDA from pytorch.org/get-started"
                if torch.version.cuda is None
                else "update the driver, get a build for an older CUDA, or look at CUDA_VISIBLE_DEVICES"
            )
            yield Finding("cuda", "note", f"NVIDIA driver {driver} is here, and this torch cannot use it", advice)
        return
    for number in range(torch.cuda.device_count()):
        try:
            properties = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            advice = "look at it with nvidia-smi, or leave it out by CUDA_VISIBLE_DEVICES"
            yield Finding(f"cuda:{number}", "problem", f"does not answer ({_first_line(error)})", advice)
            continue
        described = (
            f"{properties.name}, {format_size(free)} of {format_size(total)} free, "
            f"compute capability {properties.major}.{properties.minor}{f', driver {driver}' if driver else ''}"
        )
        yield _check_types(f"cuda:{number}", described)


def _check_types(device: str, described: str) -> Finding:
    """Compute a little on a device, in each type."""
    import torch

    broken = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        try:
            images = torch.ones(1, 4, 8, 8, dtype=dtype, device=device)
            convolved = torch.nn.functional.conv2d(images, torch.ones(4, 4, 2, 2, dtype=dtype, device=device))
            # 16 in each of 7 × 7 places, whose products add up to a number that every type holds exactly.
            works = bool((convolved.flatten(2) @ convolved.flatten(2).mT == 49 * 16**2).all())
        except (RuntimeError, TypeError):
            works = False
        if not works:
            broken.append(str(dtype).removeprefix("torch."))
    if "float32" in broken:
        return Finding(device, "problem", f"{described}; float32 does not work", "use another --device")
    if broken:
        advice = f"use another --dtype than {' and '.join(broken)}"
        return Finding(device, "note", f"{described}; {', '.join(broken)} does not work", advice)
    return Finding(device, "ok", f"{described}; float32, float16, bfloat16")


def _read_driver() -> str:
    """Read the version of the NVIDIA driver; empty where there is none that answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        described = subprocess.run(asked, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip().partition("\n")[0] if described.returncode == 0 else ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]
