"""`rlcm loop --on-hacking stop`: what it proposes to draw with."""

from __future__ import annotations

from command_line import succeed, write_settings

REWARDS = """
def rising(images, prompts, metadata):
    return images.float().mean((1, 2, 3)) / 1e6 + images.new_tensor([known.get("iteration", 0) for known in metadata])


def peaking(images, prompts, metadata):
    return -(rising(images, prompts, metadata) - 1).abs()
"""


def test_a_run_that_was_hacked_proposes_the_best_checkpoint(capsys, tiny_lcm, tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS, encoding="utf-8")
    settings = write_settings(tmp_path, tiny_lcm, monitor={"window": 1}, runtime={"iterations": 5})
    rewards = ("--reward", f"{tmp_path}/mine.py:rising", "--monitor", f"{tmp_path}/mine.py:peaking")
    run = tmp_path / "run"
    told = succeed(capsys, "loop", "--run", run, "--config", settings, *rewards, "--on-hacking", "stop").out
    assert (
        f"the newest checkpoint games the reward; generate with 1, the best one by '{tmp_path}/mine.py:peaking': "
        in told
    )
    assert f"rlcm generate --lora {run}/checkpoints/000001 --prompt cat" in told
    assert f"--lora {run} " not in told
