import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch

from rlcm_cli.errors import ConfigError, RewardError, StoreError
from rlcm_cli.rewards import RewardSpec, load_reward

IMAGES = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
PROMPTS = ["a cat", "a cat", "a dog", "a dog"]
METADATA = [{"group": index // 2} for index in range(4)]

REDNESS = "def redness(images, prompts, metadata):\n    return images[:, 0].float().mean((1, 2))\n"
VARIETY = (
    "def variety(images, prompt, metadata):\n"
    "    assert prompt in ('a cat', 'a dog') and len(metadata) == 2\n"
    "    return images.float().mean((1, 2, 3)) * 0 + images.max()\n"
    "variety.set_level = True\n"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current directory; modules and paths that a test imports are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith(("_rlcm_reward_", "mine")):
            del sys.modules[name]


def write(path: str, code: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(code)
    return path


def score(name: str) -> list[float]:
    return load_reward(RewardSpec(name)).score(IMAGES, PROMPTS, METADATA).tolist()


def refusal(name: str) -> str:
    with pytest.raises(RewardError) as caught:
        load_reward(RewardSpec(name))
    assert "\n" not in str(caught.value)
    assert f"reward {name!r}" in str(caught.value)
    return str(caught.value)


class TestFiles:
    def test_a_function_of_a_file_scores(self, here):
        write("my rewards/colour.py", REDNESS)
        for name in ("my rewards/colour.py:redness", f"{here}/my rewards/colour.py:redness"):
            assert score(name) == [0, 1, 2, 3]

    def test_files_of_one_name_do_not_meet(self):
        write("a/colour.py", REDNESS)
        write("b/colour.py", REDNESS.replace("mean", "sum"))
        first, second = (load_reward(RewardSpec(f"{folder}/colour.py:redness")) for folder in "ab")
        assert first.score(IMAGES, PROMPTS, METADATA).tolist() == [0, 1, 2, 3]
        assert second.score(IMAGES, PROMPTS, METADATA).tolist() == [0, 4, 8, 12]

    def test_a_file_can_have_the_name_of_a_package(self):
        write("torch.py", REDNESS)
        assert score("torch.py:redness") == [0, 1, 2, 3]
        assert sys.modules["torch"] is torch

    def test_an_edit_of_the_same_second_and_size_is_seen(self):
        write("colour.py", REDNESS)
        assert score("colour.py:redness") == [0, 1, 2, 3]
        write("colour.py", REDNESS.replace("mean((1, 2))", "sum((1, 2)) "))
        assert score("colour.py:redness") == [0, 4, 8, 12]
        assert not Path("__pycache__").exists()

    def test_dataclasses_find_their_module(self):
        code = (
            "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
            "@dataclass\nclass Scale:\n    unit: ClassVar[str] = 'x'\n    factor: float = 2.0\n"
            "def scaled(images, prompts, metadata):\n    return images.float().mean((1, 2, 3)) * Scale().factor\n"
        )
        write("scales.py", code)
        assert score("scales.py:scaled") == [0, 2, 4, 6]

    def test_objects_that_can_be_called_are_functions(self):
        code = (
            "class Mean:\n    set_level = True\n    def __call__(self, images, prompt, metadata):\n"
            "        return images.float().mean((1, 2, 3))\nmean = Mean()\n"
        )
        write("objects.py", code)
        assert load_reward(RewardSpec("objects.py:mean")).set_level
        assert score("objects.py:mean") == [0, 1, 2, 3]
        assert "'Mean' in objects.py is of type type; name a function" in refusal("objects.py:Mean")


class TestModules:
    def test_a_module_of_the_current_directory_scores(self):
        write("mine_colour.py", REDNESS)
        assert score("mine_colour:redness") == [0, 1, 2, 3]

    @pytest.mark.parametrize("marker", [True, False])
    def test_a_module_of_a_package_scores(self, marker):
        write(
            "mine/deep/colour.py",
            "from mine.deep.factors import FACTOR\n" + REDNESS.replace(".mean", ".mul(FACTOR).mean"),
        )
        write("mine/deep/factors.py", "FACTOR = 3\n")
        if marker:
            write("mine/__init__.py", "")
            write("mine/deep/__init__.py", "from mine.deep.colour import redness\n")
        assert score("mine.deep.colour:redness") == [0, 3, 6, 9]
        if marker:
            assert score("mine.deep:redness") == [0, 3, 6, 9]

    def test_an_installed_module_scores(self, monkeypatch, tmp_path):
        write("site/mine_installed/colour.py", REDNESS)
        monkeypatch.syspath_prepend(tmp_path / "site")
        assert score("mine_installed.colour:redness") == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        "name", ["mine:f", "mine.colour:f", "json.mine:f", "math:sqrt", "mine_bare:f", "sys:exit"]
    )
    def test_a_module_without_a_file_is_refused(self, name, monkeypatch):
        # Like __main__, it has no spec.
        monkeypatch.setitem(sys.modules, "mine_bare", ModuleType("mine_bare"))
        message = refusal(name)
        assert f"there is no Python module {name.split(':')[0]} in {Path.cwd()}" in message
        assert "start from the directory that holds it" in message


class TestSetLevel:
    def test_the_function_says_so(self):
        write("sets.py", VARIETY)
        reward = load_reward(RewardSpec("sets.py:variety"))
        assert reward.set_level
        assert score("sets.py:variety") == [1, 1, 3, 3]

    def test_a_function_that_says_nothing_scores_images(self):
        write("colour.py", REDNESS)
        assert not load_reward(RewardSpec("colour.py:redness")).set_level


class TestDescription:
    def test_describing_runs_nothing(self):
        trap = "raise SystemExit('run')\n"
        for name in ("trap.py", "mine/__init__.py", "mine/colour.py"):
            write(name, trap)
        for name in ("trap.py:f", "mine.colour:f"):
            spec = RewardSpec(name)
            assert spec.entry.description == "a function of your own"
            assert spec.find_obstacle() is None
            assert spec.revise({}) == hashlib.sha256(trap.encode()).hexdigest()
            assert spec.directory.startswith("f-")
        assert RewardSpec("trap.py:f").entry.requirements == "the file trap.py"
        assert RewardSpec("mine.colour:f").entry.requirements == "the module mine.colour"

    def test_the_revision_is_the_digest_of_the_file(self):
        write("colour.py", REDNESS)
        reward = load_reward(RewardSpec("colour.py:redness"))
        assert reward.revision == hashlib.sha256(REDNESS.encode()).hexdigest()

    @pytest.mark.parametrize("name", ["none.py:f", "mine.none:f"])
    def test_a_missing_file_is_an_obstacle(self, name):
        entry = RewardSpec(name).entry
        assert entry.obstacle({}) == refusal(name)

    def test_there_are_no_settings(self):
        write("colour.py", REDNESS)
        with pytest.raises(ConfigError, match="has no setting 'scale'; known settings: none"):
            load_reward(RewardSpec("colour.py:redness", {"scale": 2}))

    @pytest.mark.parametrize("name", [":f", "a.py:", "a.py:f g", "a.py:f.g", "a b:f", "a.:f", "a.txt/b:f", "a.py:1"])
    def test_a_malformed_name_is_refused(self, name):
        with pytest.raises(ConfigError) as caught:
            RewardSpec(name).digest  # noqa: B018
        assert str(caught.value).startswith(f"reward {name!r} is neither FILE.py:FUNCTION nor PACKAGE.MODULE:FUNCTION")

    def test_importing_it_loads_no_torch(self):
        code = (
            "import sys; from rlcm_cli.rewards import RewardSpec; RewardSpec('none.py:f').find_obstacle();"
            "print(sorted({'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


class TestMistakes:
    def test_a_missing_file(self):
        message = refusal("rewards/none.py:f")
        assert f"there is no file rewards/none.py (in {Path.cwd()})" in message

    def test_a_folder_is_no_file(self):
        Path("folder.py").mkdir()
        assert "there is no file folder.py" in refusal("folder.py:f")

    def test_a_missing_function_names_the_nearest(self):
        write("colour.py", "from pathlib import Path\n" + REDNESS + "def _redder(): ...\n")
        assert "colour.py has no function 'rednes'; did you mean 'redness'?" in refusal("colour.py:rednes")
        assert "colour.py has no function 'x'; it has redness" in refusal("colour.py:x")
        write("empty.py", "")
        assert "empty.py has no function 'x'; it has none at all" in refusal("empty.py:x")

    def test_what_is_no_function(self):
        write("colour.py", "redness = 3\n")
        assert "'redness' in colour.py is of type int; name a function" in refusal("colour.py:redness")

    @pytest.mark.parametrize("name", ["mine_broken.py:f", "mine_broken:f"])
    @pytest.mark.parametrize(
        ("code", "line", "text"),
        [
            ("import math\n\nmath.sqrt('a')\n", 3, "TypeError: must be real number, not str"),
            ("import mine_absent\n", 1, "ModuleNotFoundError: No module named 'mine_absent'"),
            ("def g():\n    raise ValueError('two\\nlines')\n\ng()\n", 2, "ValueError: two lines"),
            ("import json\njson.loads('{')\n", 2, "JSONDecodeError: Expecting property name"),
            ("import sys\nsys.exit()\n", 2, "SystemExit: SystemExit"),
            ("x = 1\nassert x == 2\n", 2, "AssertionError: AssertionError"),
            ("x = 1\ndef f(:\n", 2, "SyntaxError: invalid syntax"),
            ("if True:\nf = 1\n", 2, "IndentationError: expected an indented block"),
        ],
    )
    def test_an_exception_while_the_file_runs_names_its_line(self, name, code, line, text, here):
        write("mine_broken.py", code)
        before = set(sys.modules)
        message = refusal(name)
        assert f"{here / 'mine_broken.py'}, line {line}, raises {text}" in message
        assert message.endswith("; fix it")
        left = set(sys.modules) - before
        assert not any(module.startswith(("_rlcm_reward_", "mine_broken")) for module in left)

    def test_the_exception_is_the_cause(self):
        write("broken.py", "1 / 0\n")
        with pytest.raises(RewardError) as caught:
            load_reward(RewardSpec("broken.py:f"))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert caught.value.__cause__.__traceback__ is not None

    def test_an_exception_in_the_package_above_names_its_line(self, here):
        write("mine/__init__.py", "\n1 / 0\n")
        write("mine/colour.py", REDNESS)
        message = refusal("mine.colour:redness")
        assert f"{here / 'mine' / '__init__.py'}, line 2, raises ZeroDivisionError" in message

    def test_bytes_that_are_no_text(self):
        Path("binary.py").write_bytes(b"x = '\xff'\n")
        assert "binary.py" in refusal("binary.py:f")

    def test_an_exception_while_it_scores_names_its_line(self, here):
        write(
            "colour.py",
            "def redness(images, prompts, metadata):\n    return helper(images)\n\n"
            "def helper(images):\n    return images.mean()\n",
        )
        with pytest.raises(RewardError) as caught:
            score("colour.py:redness")
        assert f"{here / 'colour.py'}, line 5, raises RuntimeError: mean(): could not infer" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_an_error_of_the_tree_comes_out_as_it_is(self):
        write(
            "colour.py",
            "from rlcm_cli.errors import StoreError\n"
            "def redness(images, prompts, metadata):\n    raise StoreError('no picture')\n",
        )
        with pytest.raises(StoreError, match=r"^no picture$"):
            score("colour.py:redness")

    def test_ctrl_c_is_no_mistake(self):
        write("colour.py", "def redness(images, prompts, metadata):\n    raise KeyboardInterrupt\n")
        with pytest.raises(KeyboardInterrupt):
            score("colour.py:redness")

    def test_what_it_returns_is_checked(self):
        write("colour.py", "def redness(images, prompts, metadata):\n    return [1.0] * len(images)\n")
        with pytest.raises(RewardError, match=r"'colour\.py:redness' returned list, not a float32 tensor"):
            score("colour.py:redness")


WRITER = """
kept = []

def mine(images, prompts, metadata):
    kept.append(images)
    images[:] = 255
    prompts.clear()
    metadata[0]["group"] = 7
    metadata[1]["nested"].append(1)
    return images.float().mean((1, 2, 3))
"""

SET_WRITER = WRITER.replace("    prompts.clear()\n", "") + "\nmine.set_level = True\n"

MEDDLER = """
import os, random
import numpy
import torch

def meddle():
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    os.chdir("/")

meddle()

def mine(images, prompts, metadata):
    meddle()
    os.environ["RLCM_MEDDLED"] = "1"
    del os.environ["RLCM_WANTED"]
    os.environ["RLCM_KEPT"] = "other"
    return images.sum((1, 2, 3)).to(torch.float32)
"""

BUFFER = """
import torch

buffer = torch.zeros(4)

def mine(images, prompts, metadata):
    buffer.copy_(images.float().mean((1, 2, 3)))
    return buffer
"""


def state():
    """What of the process a reward could change."""
    return [
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
        Path.cwd(),
        dict(os.environ),
    ]


class TestGuards:
    """What a function does to what it is given, or to the process, stays with it."""

    @pytest.mark.parametrize("code", [WRITER, SET_WRITER], ids=["reward", "set reward"])
    def test_writing_into_what_it_is_given_changes_nothing(self, here, code):
        write("mine_writer.py", code)
        images, prompts = IMAGES.clone(), list(PROMPTS)
        metadata = [{**known, "nested": []} for known in METADATA]
        rewards = load_reward(RewardSpec("mine_writer.py:mine")).score(images, prompts, metadata)
        assert rewards.tolist() == [255] * 4
        assert torch.equal(images, IMAGES)
        assert prompts == PROMPTS
        assert metadata == [{**known, "nested": []} for known in METADATA]

    def test_of_float_images_too_and_their_gradient_is_kept(self, here):
        code = "def mine(images, *_):\n    images[:, 1:] = 0\n    return images.mean((1, 2, 3))\n"
        write("mine_float.py", code + "mine.differentiable = True\n")
        images = IMAGES.float().requires_grad_()
        rewards = load_reward(RewardSpec("mine_float.py:mine")).score_floats(images, PROMPTS, METADATA)
        rewards.sum().backward()
        assert torch.equal(images.detach(), IMAGES.float())
        assert torch.equal(images.grad[:, 0], torch.full((4, 2, 2), 1 / 12))
        assert not images.grad[:, 1:].any()

    def test_what_it_changes_of_the_process_is_put_back(self, here, monkeypatch):
        write("mine_meddler.py", MEDDLER)
        monkeypatch.setenv("RLCM_WANTED", "1")
        monkeypatch.setenv("RLCM_KEPT", "1")
        monkeypatch.delenv("RLCM_MEDDLED", raising=False)
        before = state()
        reward = load_reward(RewardSpec("mine_meddler.py:mine"))
        assert state() == before
        assert reward.score(IMAGES, PROMPTS, METADATA).tolist() == [0, 12, 24, 36]
        assert state() == before

    def test_it_is_put_back_after_an_exception(self, here, monkeypatch):
        monkeypatch.setenv("RLCM_WANTED", "1")
        write("mine_meddler.py", MEDDLER.replace("    return images", "    raise ValueError\n    return images"))
        reward, before = load_reward(RewardSpec("mine_meddler.py:mine")), state()
        with pytest.raises(RewardError, match="ValueError"):
            reward.score(IMAGES, PROMPTS, METADATA)
        assert state() == before

    def test_a_tensor_that_it_gives_again_is_not_the_one_it_gave(self, here):
        write("mine_buffer.py", BUFFER)
        reward = load_reward(RewardSpec("mine_buffer.py:mine"))
        first = reward.score(IMAGES, PROMPTS, METADATA)
        reward.score(IMAGES + 1, PROMPTS, METADATA)
        assert first.tolist() == [0, 1, 2, 3]
