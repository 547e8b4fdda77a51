"""Which run or LoRA a path means."""

from __future__ import annotations

import pytest
from store_samples import write_run

from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.store.checkpoint import LORA_FILE
from rlcm_cli.store.locate import find_adapter, find_run


@pytest.fixture
def layout(tmp_path):
    return write_run(tmp_path / "run", iterations=2)


def test_the_run_of_a_path_is_the_folder_with_its_configuration(layout):
    for path in (layout.root, layout.checkpoint(0), layout.shard(0, 0, 2)):
        assert find_run(path) == layout
    (layout.checkpoint(0) / "config.json").write_text("{}")  # some other program's
    assert find_run(layout.shard(0, 0, 2)) == layout


def test_a_path_outside_of_a_run_has_none(tmp_path):
    with pytest.raises(ConfigError, match="lies in no run directory"):
        find_run(tmp_path / "nowhere")


def test_the_lora_of_a_run_is_that_of_its_newest_checkpoint(layout):
    newest = layout.checkpoint(2) / LORA_FILE
    assert find_adapter(str(layout.root)) == newest
    assert find_adapter(str(layout.checkpoint(2))) == newest
    assert find_adapter(str(newest)) == newest
    assert find_adapter("owner/name") is None


def test_a_folder_without_a_lora_is_refused(layout):
    with pytest.raises(ModelError, match="holds no LoRA"):
        find_adapter(str(layout.rollout(0)))
