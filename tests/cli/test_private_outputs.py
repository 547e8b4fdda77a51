"""What is made to be shown or given away tells no folder, no user and no secret of the machine that made it."""

from __future__ import annotations

import re
import shutil

import pytest
from command_line import succeed, write_settings
from matplotlib.text import Text
from PIL import Image
from safetensors import safe_open

pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
pytest.importorskip("vl_convert", reason="the report's charts need the extra `report`")

MARK = "annmarked"
SECRET = "s3cret-marked-token"  # noqa: S105
ROOTED = re.compile(r"(?<![\w.…:/-])/(?:home|root|tmp|var|private|Users)/\w|[A-Z]:\\{1,2}Users")
REWARD = "def neat(images, prompts, metadata):\n    return images[:, 0].float().mean((1, 2)) / 255\n"


def reveal(file) -> list[str]:
    """List what a file tells of the machine: the marks, or a path from a root, in its bytes or a picture's chunks."""
    if file.suffix == ".png":  # pixels are noise, in which anything may be found
        with Image.open(file) as picture:
            picture.load()  # chunks may follow the pixels
            text = repr({key: value for key, value in picture.info.items() if isinstance(value, str)})
    elif file.suffix == ".safetensors":
        with safe_open(file, framework="np") as opened:
            text = repr(opened.metadata())
    else:
        text = file.read_bytes().decode("utf-8", "replace")
    text += file.name
    return [mark for mark in (MARK, SECRET) if mark in text] + ROOTED.findall(text)


@pytest.fixture
def home(tmp_path, monkeypatch, tiny_lcm):
    """A folder with a telling name that holds model, prompts and reward; the user and the tokens tell, too."""
    home = tmp_path / MARK
    shutil.copytree(tiny_lcm, home / "models/lcm")
    (home / "my texts").mkdir()
    (home / "my texts/prompts").write_text("caption\ncat\ndog\ncow\nbee\n", encoding="utf-8")
    for name in ("neat", "monitoring"):
        (home / f"{name}.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.chdir(home)
    monkeypatch.setattr("socket.gethostname", lambda: MARK)
    monkeypatch.setenv("HOME", str(home))
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, MARK)
    for name in ("RLCM_REWARD_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    return home


@pytest.fixture
def run(home, capsys):
    """A finished run, whose configuration names everything by its whole path."""
    prompts = {"source": f"csv:{home}/my texts/prompts:caption", "held_out_fraction": 0.0}
    settings = write_settings(home, home / "models/lcm", prompts=prompts)
    rewards = ("--reward", f"{home}/neat.py:neat=1", "--reward", "compressibility=1")
    rewards += ("--monitor", f"{home}/monitoring.py:neat", "--log-with", "tensorboard")
    succeed(capsys, "loop", "--run", home / "run", "--config", settings, *rewards, "-q")
    assert MARK in (home / "run/config.json").read_text(encoding="utf-8")
    return home / "run"


@pytest.fixture
def drawn(monkeypatch):
    """All text that matplotlib puts into pictures."""
    texts: list[str] = []
    draw = Text.draw

    def note(self, *arguments, **named):
        texts.append(self.get_text())
        return draw(self, *arguments, **named)

    monkeypatch.setattr(Text, "draw", note)
    return texts


def test_pictures_reports_and_exports_tell_nothing_of_the_machine(capsys, home, drawn, run):
    out = home / "out"
    succeed(capsys, "generate", "--lora", run, "--prompt", "a cat", "--count", 2, "--out", out / "drawn", "-q")
    succeed(capsys, "inspect", run, "--images", out / "images")
    shutil.copytree(run, home / "again")
    labels = ("--label", f"one={run}", "--label", f"two={home / 'again'}")
    succeed(capsys, "compare", *labels, "--out", out / "compared")
    succeed(capsys, "report", run, "--out", out / "page.html")
    succeed(capsys, "export", run, "--out", out / "lora", "-q")
    succeed(capsys, "export", run, "--format", "kohya", "--out", out / "kohya", "-q")
    succeed(capsys, "export", run, "--format", "pipeline", "--out", out / "pipeline", "-q")
    for picture in ("rewards.png", "before_after.png"):
        shutil.copy(run / picture, out)
    shutil.copytree(run / "logs", out / "logs")

    files = [file for file in out.rglob("*") if file.is_file()]
    assert {".png", ".json", ".csv", ".md", ".safetensors", ".html"} <= {file.suffix for file in files}
    assert {str(file.relative_to(out)): found for file in files if (found := reveal(file))} == {}
    assert "neat.py:neat" in drawn
    assert [text for text in drawn if MARK in text or text.startswith("/")] == []


def test_what_would_be_told_is_found(tmp_path):
    for name, text in {"a.md": f"by {MARK}", "b.json": '"/home/x/lcm"', "c.csv": SECRET, "d.html": "a /tmp/x"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert reveal(tmp_path / name)
    (tmp_path / "e.md").write_text("`runs/home/x`, https://host/tmp/x, rewards/neat.py", encoding="utf-8")
    assert reveal(tmp_path / "e.md") == []
