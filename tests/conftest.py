"""Fixtures: a latent consistency pipeline of the real architecture, tiny, with random weights."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Bytes are compared in these tests, and they depend on the number of threads: it is the same here and in every process
# that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from object_stores import machine, remote, s3  # noqa: F401
from perturbed.perturbation import perturb_schedules

from rlcm_cli.config import Config, parse_config


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--perturb-schedules",
        action="store_true",
        help="change last bits of float32 products and roots, as another processor or vector library does",
    )


def pytest_collection_finish() -> None:
    """What is imported by now stays: without it a collection of garbage walks over far fewer objects."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: what it needs is to be installed there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # No test cuts the power, and waiting for the disk is a good part of the time of the tests.
    os.fsync = lambda _: None
    if config.getoption("--perturb-schedules"):
        perturb_schedules(torch)
        # … in the processes that a test starts, too.
        paths = [str(Path(__file__).parent / "perturbed"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Scores of these tests stay among themselves."""
    os.environ["RLCM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def build_tiny_lcm(folder: Path) -> None:
    """Save a pipeline with 8x8 latents of 4 channels and 16x16 images: a forward takes a few milliseconds."""
    from diffusers import AutoencoderTiny, LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from rlcm_cli.models.embedded import embedded_folder

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(embedded_folder("emoji-lcm") / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
        time_cond_proj_dim=32,
    )
    vae = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    LatentConsistencyModelPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny pipeline; read it, do not change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-lcm"
    build_tiny_lcm(folder)
    return folder


@pytest.fixture
def tiny_lcm_copy(tiny_lcm: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline's folder, to break."""
    return Path(shutil.copytree(tiny_lcm, tmp_path / "tiny-lcm-copy"))


@pytest.fixture(scope="session")
def finished_run(tiny_lcm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a finished run of the tiny pipeline, two iterations long; read it, or copy it, do not change it."""
    from phase_runs import make_config, make_loop, raw_bytes

    root = tmp_path_factory.mktemp("runs") / "finished"
    make_loop(root, make_config(tiny_lcm))
    before = raw_bytes(root)
    yield root
    assert raw_bytes(root) == before, f"a test has changed {root}, which others read"


def edit_config(root: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a run's configuration as if it had been made so: its identity fits it, in inputs and metrics, too."""
    from rlcm_cli.core.digests import digest_json
    from rlcm_cli.store.identity import identify_run

    record = json.loads((root / "config.json").read_text())
    edit(record["config"])
    run = identify_run(record["config"])
    (root / "config.json").write_text(json.dumps({**record, "run": run}))
    inputs = root / "inputs.json"
    if inputs.exists():
        values = json.loads(inputs.read_text())
        own = {name: run if name == "run" else values[name] for name in ("run", "prompts", "images")}
        inputs.write_text(json.dumps({**values, **own, "sha256": digest_json(own)}))
    for file in (root / "metrics").glob("*.json"):
        metrics = {key: value for key, value in json.loads(file.read_text()).items() if key != "digest"} | {"run": run}
        file.write_text(json.dumps({**metrics, "digest": digest_json(metrics)}))


def tiny_values(model: Path, **sections: Any) -> dict[str, Any]:
    """Give the values of a configuration that trains in well under a second an iteration."""
    values: dict[str, Any] = {
        "task": "compression",
        "model": {"name": str(model)},
        "rewards": {"compressibility": 1.0},
        "sample": {"samples": 8, "batch_size": 4, "shards": 2, "steps": 4, "guidance_scale": 4.0},
        "train": {"learning_rate": 1e-3, "buffer_size": 4, "min_count": 2},
        "lora": {"rank": 2, "alpha": 4},
        "evaluate": {"prompts": 3, "images_per_prompt": 1},
        "runtime": {"iterations": 2, "device": "cpu", "micro_batch_size": 8},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return values


@pytest.fixture
def tiny_config(tiny_lcm: Path) -> Config:
    """A configuration of the tiny pipeline."""
    return parse_config(tiny_values(tiny_lcm))
