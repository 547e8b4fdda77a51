"""A reward whose code, weights or server changes between two calls: refused, or told apart from what it was."""

from pathlib import Path

import pytest
import torch
from phase_runs import fingerprint, finish, make_config, make_loop, shared_model

from rlcm_cli.errors import MissingFileError, RunMismatchError
from rlcm_cli.events import Warned
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.report.compare.comparison import compare_runs
from rlcm_cli.report.compare.evaluations import read_held_out_levels
from rlcm_cli.report.compare.runs import ComparedRun
from rlcm_cli.rewards import REWARDS, RewardEntry
from rlcm_cli.rewards.custom.functions import code_files, digest_code
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.checkpoint import read_statistics
from rlcm_cli.store.evaluations import comparable_evaluations, publish_rescored, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.reward_versions import claim_version, comparable_rows, current_version, split_scores_folder
from rlcm_cli.store.rollouts import read_scores, read_shard
from rlcm_cli.store.score_cache import ScoreCache
from rlcm_cli.store.shards import read_record
from rlcm_cli.store.verification import verify_run

RED = "def mine(images, prompts, metadata):\n    return images[:, 0].float().mean((1, 2))\n"
GREEN = RED.replace("[:, 0]", "[:, 1]") + "# green\n"
"""Of another size: what is read of the file is its content, not its time."""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "colour.py").write_text(RED)
    return tmp_path / "colour.py"


@pytest.fixture
def run(tiny_lcm, tmp_path, code):
    """A run of one iteration, trained for red, on one prompt, so that its statistics count."""
    rewards, settings = {f"{code}:mine": 1.0}, {"iterations": 1, "device": "cpu"}
    return make_loop(tmp_path / "run", make_config(tiny_lcm, rewards=rewards, runtime=settings))


def channel(images, number):
    return images[:, number].float().mean((1, 2))


def iterate(run, scorers):
    """Do one iteration as the commands do, and evaluate both ends."""
    model = shared_model(Path(run.config.model.name), run.config.lora.rank)
    finish(evaluate(run, model, scorers, 0))
    finish(sample(run, model))
    finish(score(run, scorers))
    events = finish(train(run, model))
    finish(evaluate(run, model, scorers, run.layout.checkpoints()[-1]))
    return events


def compared(run):
    return ComparedRun(run, run.layout.root.name)


def test_it_is_refused_and_nothing_is_touched(run, code):
    before = fingerprint(run.layout.root)
    code.write_text(GREEN)
    with pytest.raises(RunMismatchError) as caught:
        load_scorers(run)
    assert f"the code of reward {code}:mine changed since the run last scored with it" in str(caught.value)
    assert "--allow-changed-code" in str(caught.value)
    assert fingerprint(run.layout.root) == before
    code.write_text(RED)
    load_scorers(run)


def test_a_change_before_the_first_iteration_counts(tiny_lcm, tmp_path, code):
    run = create_run(tmp_path / "run", make_config(tiny_lcm, rewards={f"{code}:mine": 1.0}))
    scorers = load_scorers(run)
    code.write_text(GREEN)
    other = load_scorers(run)  # nothing was scored yet
    model = shared_model(Path(run.config.model.name), run.config.lora.rank)
    finish(sample(run, model))
    finish(evaluate(run, model, scorers, 0))
    with pytest.raises(RunMismatchError):
        load_scorers(run)
    with pytest.raises(RunMismatchError):  # loaded before the other had claimed the run
        finish(score(run, other))


def test_after_an_allowed_change_nothing_is_mixed(run, code):
    layout, name = run.layout, f"{code}:mine"
    directory = run.reward_specs()[name].directory
    code.write_text(GREEN)
    events = iterate(run, load_scorers(run, allow_changed=True))
    # The scores of each version are in a folder of their own, each by its code.
    assert [folder.name for folder in (layout.rollout(0) / "rewards").glob("mine*")] == [directory]
    (later,) = (layout.rollout(1) / "rewards").glob("mine*")
    assert split_scores_folder(later.name) == (directory, 1)
    for iteration, number in ((0, 0), (1, 1)):
        manifest = read_manifest(layout.manifest(iteration))
        images = torch.cat([read_shard(layout, manifest, n).images for n in range(len(manifest.shards))])
        assert torch.equal(torch.from_numpy(read_scores(layout, manifest, directory).values), channel(images, number))
    # Evaluation 0 was scored again, so that before and after are of one reward; its old scores are still there.
    for checkpoint in (0, 2):
        evaluation = read_evaluation(layout, checkpoint)
        assert torch.equal(torch.from_numpy(evaluation.rewards[name]), channel(torch.from_numpy(evaluation.images), 1))
    old, _ = read_record(layout.evaluation(0), "evaluation")
    assert torch.equal(old[f"reward.{name}"], channel(old["images"], 0))
    # The statistics of prompts rest on the new scores alone.
    assert any("begin again" in event.message for event in events if isinstance(event, Warned))
    statistics = read_statistics(layout, 2)[f"{run.config.task}/{name}"]
    kept = [value for rewards in statistics.values() for value in rewards]
    assert sorted(kept) == sorted(read_scores(layout, read_manifest(layout.manifest(1)), directory).values.tolist())
    # And so do curves and comparisons.
    rows = read_metrics(layout)
    assert [row.iteration for row in comparable_rows(rows)] == [1]
    with pytest.raises(MissingFileError, match="has metrics of 1 iteration since a reward changed"):
        compare_runs([compared(run)])
    # The same code goes on without leave; a third version does not.
    iterate(run, load_scorers(run))
    note = "run: its curve begins after iteration 1, when the code, weights or server of a reward changed"
    assert note in compare_runs([compared(run)]).notes
    code.write_text(RED)
    with pytest.raises(RunMismatchError):
        load_scorers(run)
    assert verify_run(layout) == []


def test_evaluations_of_two_versions_are_not_compared(run, code):
    """As where only the newest evaluation of a remote run was fetched and scored again."""
    both = [read_evaluation(run.layout, number) for number in (0, 1)]
    assert comparable_evaluations(both) == both
    assert read_held_out_levels(compared(run), None, total=True) is not None
    name = f"{code}:mine"
    publish_rescored(
        run.layout, both[1], {name: channel(torch.from_numpy(both[1].images), 1).numpy()}, {name: "another"}
    )
    changed = [read_evaluation(run.layout, number) for number in (0, 1)]
    assert comparable_evaluations(changed) == changed[1:]
    assert read_held_out_levels(compared(run), None, total=True) is None


def test_stored_rollouts_are_scored_anew(run, code):
    """`rlcm score --reward` on all that is stored does not take the old code's scores for the new one's."""
    code.write_text(GREEN)
    scorers = load_scorers(run, allow_changed=True)
    finish(score(run, scorers, iterations=[0]))
    manifest = read_manifest(run.layout.manifest(0))
    directory = run.reward_specs()[f"{code}:mine"].directory
    images = torch.cat([read_shard(run.layout, manifest, n).images for n in range(len(manifest.shards))])
    assert torch.equal(torch.from_numpy(read_scores(run.layout, manifest, directory).values), channel(images, 1))


def test_scores_of_the_old_code_are_not_taken_from_the_cache(run, code, tmp_path):
    manifest = read_manifest(run.layout.manifest(0))
    directory = run.reward_specs()[f"{code}:mine"].directory
    with ScoreCache(tmp_path / "scores.sqlite3") as cache:
        for text, number in ((RED, 0), (GREEN, 1)):
            code.write_text(text)
            finish(score(run, load_scorers(run, cache=cache, allow_changed=True), iterations=[0]))
            images = torch.cat([read_shard(run.layout, manifest, n).images for n in range(len(manifest.shards))])
            assert torch.equal(
                torch.from_numpy(read_scores(run.layout, manifest, directory).values), channel(images, number)
            )


@pytest.mark.parametrize("kind", ["weights", "server"])
def test_what_is_no_code_changes_too(tiny_lcm, tmp_path, monkeypatch, kind):
    revision = ["one"]
    name = "weighty" if kind == "weights" else "http://127.0.0.1:9/weighty"
    entry = RewardEntry(
        lambda **_: lambda images, prompts, metadata: channel(images, 0), "", "", revise=lambda settings: revision[0]
    )
    monkeypatch.setitem(REWARDS, name, entry)
    run = make_loop(tmp_path / "run", make_config(tiny_lcm, rewards={name: 1.0}, runtime={"iterations": 1}))
    load_scorers(run)
    revision[0] = "two"
    with pytest.raises(RunMismatchError, match=rf"the {kind} of reward {name} changed .*\(revision one → two\)"):
        load_scorers(run)
    load_scorers(run, allow_changed=True)


def test_two_that_claim_at_once(tmp_path):
    layout = RunLayout(tmp_path)
    first = claim_version(layout, "mine-0123", "mine", "red")
    assert (first.number, first.scores_folder("mine-0123")) == (0, "mine-0123")
    assert claim_version(layout, "mine-0123", "mine", "red") == first
    second = claim_version(layout, "mine-0123", "mine", "green")
    assert (second.number, current_version(layout, "mine-0123")) == (1, second)
    assert split_scores_folder(second.scores_folder("mine-0123")) == ("mine-0123", 1)
    assert claim_version(layout, "mine-0123", "mine", "red").number == 2


class TestWhatTheCodeIs:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for path, text in {
            "alone.py": "def f(*_): ...",
            "rlcm_cli/__init__.py": "",
            "flat.py": "import os, helper, rlcm_cli\ndef f(*_):\n    from deep.er import thing",
            "helper.py": "import third",
            "third.py": "",
            "deep/er.py": "",
            "deep/unused.py": "",
            "pack/__init__.py": "",
            "pack/mod.py": "from . import sibling\nfrom .sub.one import x\nimport third",
            "pack/sibling.py": "",
            "pack/sub/__init__.py": "from ..above import y",
            "pack/sub/one.py": "",
            "pack/above.py": "",
            "pack/unused.py": "",
        }.items():
            (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / path).write_text(text)

    @pytest.mark.parametrize(
        ("name", "files"),
        [
            ("alone.py:f", {"alone.py"}),
            ("flat.py:f", {"flat.py", "helper.py", "third.py", "deep/er.py"}),
            ("flat:f", {"flat.py", "helper.py", "third.py", "deep/er.py"}),
            (
                "pack.mod:f",
                {
                    "pack/__init__.py",
                    "pack/mod.py",
                    "pack/sibling.py",
                    "pack/sub/__init__.py",
                    "pack/sub/one.py",
                    "pack/above.py",
                    "third.py",
                },
            ),
        ],
    )
    def test_the_files(self, name, files, tmp_path):
        assert {file.relative_to(tmp_path.resolve()).as_posix() for file in code_files(name)} == files
        for file in files:
            before = digest_code(name)
            (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
            assert digest_code(name) != before

    def test_of_an_installed_package_its_own_alone(self):
        files = code_files("packaging.specifiers:Specifier")
        assert {file.parent.name for file in files} == {"packaging"}
        assert {"specifiers.py", "version.py"} <= {file.name for file in files}

    def test_a_file_that_does_not_parse_is_still_digested(self, tmp_path):
        (tmp_path / "helper.py").write_text("def (")
        assert {file.name for file in code_files("flat.py:f")} == {"flat.py", "helper.py", "er.py"}
