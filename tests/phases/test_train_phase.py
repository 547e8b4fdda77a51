import dataclasses
import math
import re

import pytest
import torch
from phase_runs import (
    adapter,
    copy_run,
    finish,
    kinds,
    largest_difference,
    make_by_hand,
    make_config,
    make_loop,
    one_iteration,
    prepare,
    raw_bytes,
    remove_record,
    scorers_of,
    shared_model,
)

from rlcm_cli.core.advantages import per_prompt_advantages
from rlcm_cli.errors import (
    ConfigError,
    ForeignFileError,
    MissingFileError,
    RewardError,
    StalePolicyError,
    TrainingError,
)
from rlcm_cli.events import Advanced, Evaluated, IterationTrained, Warned
from rlcm_cli.models.lora import lora_parameters, save_lora
from rlcm_cli.phases import train as train_module
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.runs.policy import ensure_start, load_policy_model
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.checkpoint import (
    LORA_FILE,
    digest_safetensors,
    publish_checkpoint,
    read_optimizer,
    read_statistics,
    read_trainer_state,
)
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.quarantine import quarantine
from rlcm_cli.store.rollouts import publish_rewards, read_rewards

UPDATES = {"minibatch_size": 4, "inner_epochs": 3, "learning_rate": 1e-2}
LINEAR = {"adam_epsilon": 1.0, "learning_rate": 1.0}
"""Adam with so large an epsilon steps along the gradient: no small difference is blown up to a full step."""


@pytest.fixture
def config(tiny_lcm):
    return make_config(tiny_lcm)


def reward_of(run, function):
    """Make the run's reward one of the place of a sample in its iteration."""

    def reward(images, prompts, metadata):
        return torch.tensor([float(function(known["sample"])) for known in metadata])

    return scorers_of(run, {"compressibility": reward})


def refuses_to_train(error, run, model, **options):
    """Give the message of the refusal; it changes nothing."""
    before = raw_bytes(run.layout.root)
    with pytest.raises(error) as caught:
        finish(train(run, model, **options))
    assert raw_bytes(run.layout.root) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWhatIsMissing:
    def test_rewards(self, config, tmp_path):
        run, model = prepare(tmp_path / "run", config, upto="sample")
        assert f"`rlcm score --run {tmp_path / 'run'}`" in refuses_to_train(MissingFileError, run, model)

    def test_shards(self, config, tmp_path):
        run, model = prepare(tmp_path / "run", config)
        remove_record(run.layout.shard(0, 1, 2))
        message = refuses_to_train(MissingFileError, run, model)
        assert "1 of 2 shards are not sampled yet (first: 1); run `rlcm sample --run" in message

    def test_rollouts(self, tiny_lcm, config, tmp_path):
        run, model = create_run(tmp_path / "run", config), shared_model(tiny_lcm)
        ensure_start(run, model)
        assert "no rollouts to train on; run `rlcm sample" in refuses_to_train(MissingFileError, run, model)


class TestRewardsThatCannotBe:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_are_refused_when_they_are_given(self, config, tmp_path, value):
        run, _ = prepare(tmp_path / "run", config, upto="sample")
        with pytest.raises(RewardError, match=r"returned (nan|inf) for 1 of 4 samples"):
            finish(score(run, reward_of(run, lambda sample: value if sample == 6 else 0)))
        assert [file.name for file in run.layout.rollout(0).glob("rewards/*/*.json")] == ["shard-00000-of-00002.json"]

    def test_are_refused_when_they_were_written_by_hand(self, config, tmp_path):
        run, model = prepare(tmp_path / "run", config)
        manifest = read_manifest(run.layout.manifest(0))
        (spec,) = run.reward_specs().values()
        remove_record(path := run.layout.reward_shard(0, spec.directory, 1, 2))
        values = torch.tensor([0.0, 1.0, 2.0, math.nan])
        identity = {"name": spec.name, "settings": spec.resolved, "digest": spec.digest, "revision": "1"}
        publish_rewards(run.layout, manifest, 1, spec.directory, identity, torch.arange(4, 8), values)
        message = refuses_to_train(RewardError, run, model)
        assert message.startswith(f"{path}: holds a NaN")
        quarantine(path)
        finish(score(run, load_scorers(run)))
        assert isinstance(finish(train(run, model))[-1], IterationTrained)

    @pytest.mark.parametrize("train_settings", [{}, {"kl_weight": 0.5, "ema_decay": 0.5}])
    def test_equal_rewards_change_nothing_and_the_run_goes_on(self, tiny_lcm, tmp_path, train_settings):
        config = make_config(tiny_lcm, train=train_settings, runtime={"iterations": 3})
        run, model = create_run(tmp_path / "run", config), shared_model(tiny_lcm)
        flat = reward_of(run, lambda sample: 3)
        for scorers in (load_scorers(run), flat, load_scorers(run)):
            finish(sample(run, model))
            finish(score(run, scorers))
            events = finish(train(run, model))
            if scorers is flat:
                told = [event.message for event in events if isinstance(event, Warned)]
                assert any(message.startswith("iteration 2: all rewards are equal (3)") for message in told)
        states = [read_trainer_state(run.layout, number) for number in range(4)]
        # Not even along the moments of Adam, which are those of the first iteration.
        assert states[1].policy_digest == states[2].policy_digest != states[3].policy_digest
        assert [state.optimizer_steps for state in states] == [0, 1, 1, 2]
        assert read_optimizer(run.layout, 2).keys() == read_optimizer(run.layout, 1).keys() != set()
        for name, tensor in read_optimizer(run.layout, 1).items():
            assert torch.equal(read_optimizer(run.layout, 2)[name], tensor)
        assert read_statistics(run.layout, 2) != read_statistics(run.layout, 1)
        rows = read_metrics(run.layout)
        assert [row.updates for row in rows] == [1, 0, 1]
        assert rows[1].forwards == 8 * 4
        assert "loss" not in rows[1].measured

    @pytest.mark.parametrize(
        ("kind", "told"), [("group", "the others of its group"), ("leave-one-out", "the others of its group")]
    )
    def test_rewards_that_differ_between_groups_only_are_told_as_such(self, tiny_lcm, tmp_path, kind, told):
        config = make_config(
            tiny_lcm, objective={"kind": "grpo"}, train={"advantages": kind}, sample={"group_size": 2}
        )
        run, model = prepare(tmp_path / "run", config, upto="sample")
        finish(score(run, reward_of(run, lambda sample: sample // 2)))
        events = finish(train(run, model))
        messages = [event.message for event in events if isinstance(event, Warned)]
        assert any(f"no reward differs from what it is compared with, {told}" in message for message in messages)
        assert not any("all rewards are equal" in message for message in messages)
        assert events[-1].metrics.updates == 0

    @pytest.mark.parametrize("settings", [{"advantages": "none"}, {"advantages": "batch"}])
    def test_a_regression_on_equal_rewards_changes_nothing(self, tiny_lcm, tmp_path, settings):
        config = make_config(tiny_lcm, objective={"kind": "rwr"}, train=settings)
        run, model = prepare(tmp_path / "run", config, upto="sample")
        finish(score(run, reward_of(run, lambda sample: 3)))
        assert finish(train(run, model))[-1].metrics.updates == 0

    def test_a_prompt_whose_images_have_equal_rewards_is_warned_about(self, tiny_lcm, tmp_path):
        config = make_config(tiny_lcm, sample={"group_size": 2})
        run, model = prepare(tmp_path / "run", config, upto="sample")
        finish(score(run, reward_of(run, lambda sample: 9 if sample in (2, 3) else sample)))
        events = finish(train(run, model))
        (warning,) = [event.message for event in events if isinstance(event, Warned)]
        flat = read_manifest(run.layout.manifest(0)).prompts[1]
        assert f"for 1 prompt (such as '{flat}')" in warning
        assert events[-1].metrics.flat_prompts == 1


def replace_policy(run, model):
    """Put another policy into the newest checkpoint's place."""
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.add_(0.05)
    quarantine(run.layout.checkpoint(0))
    publish_checkpoint(
        run.layout,
        0,
        write_weights=lambda folder: save_lora(model, folder),
        model_digest=model.digest,
        optimizer={},
        optimizer_steps=0,
        statistics={},
    )
    model.adapter_digest = None


class TestPolicyOfTheRollout:
    def test_another_policys_rollout_is_stale_and_admitted_off_policy_alone(self, config, tmp_path):
        run, model = prepare(tmp_path / "run", config)
        replace_policy(run, model)
        message = refuses_to_train(StalePolicyError, run, model)
        assert "drawn by another policy than checkpoint 0" in message
        assert "--off-policy" in message
        with pytest.raises(ForeignFileError, match="another plan"):
            finish(sample(run, model))
        metrics = finish(train(run, model, off_policy=True))[-1].metrics
        assert metrics.measured["ratio_drift"] > 1e-4

    @pytest.mark.parametrize(
        ("weight", "fault"),
        [(0.1, r"before any update the probability ratio is .*another adapter"), (math.nan, "the model gives NaN")],
    )
    def test_a_model_that_does_not_replay_the_probabilities_is_refused(self, config, tmp_path, weight, fault):
        run, model = prepare(tmp_path / "run", config)
        with torch.no_grad():
            for parameter in lora_parameters(model).values():
                parameter.add_(weight)  # while the model believes to hold the checkpoint's adapter
        try:
            assert re.search(fault, refuses_to_train(TrainingError, run, model))
        finally:
            model.adapter_digest = None

    def test_another_base_model_is_refused(self, config, tmp_path):
        run, model = prepare(tmp_path / "run", config)
        digest, model.digest = model.digest, "another"
        try:
            assert "another base model" in refuses_to_train(ForeignFileError, run, model)
        finally:
            model.digest = digest

    def test_a_rollout_of_another_base_model_is_refused(self, config, tmp_path):
        run, model = prepare(tmp_path / "run", config)
        path = run.layout.manifest(0)
        path.write_bytes(read_manifest(path).model_copy(update={"model_digest": "another"}).encode())
        assert "its samples come from another base model" in refuses_to_train(ForeignFileError, run, model)

    def test_the_ratio_before_an_update_is_1_for_any_split(self, tiny_lcm, tmp_path):
        for number, (sizes, micro) in enumerate(
            [({"batch_size": 3}, 1), ({"shards": 5}, 7), ({"batch_size": 8, "shards": 1}, 100)]
        ):
            config = make_config(tiny_lcm, sample=sizes, runtime={"micro_batch_size": micro})
            assert one_iteration(tmp_path / str(number), config).measured["ratio_drift"] <= 2e-6


class TestAnUpdateThatChangesNothing:
    def test_trips(self, config, tmp_path, monkeypatch):
        run, model = prepare(tmp_path / "run", config)
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
        assert "1 optimizer steps changed no weight" in refuses_to_train(TrainingError, run, model)

    def test_is_told_once_where_the_rate_has_decayed_to_0_and_the_run_ends_well(self, tiny_lcm, tmp_path):
        config = make_config(tiny_lcm, train={"lr_decay_iterations": 2}, runtime={"iterations": 4})
        run = create_run(tmp_path / "run", config)
        events = finish(loop(run, shared_model(tiny_lcm), load_scorers(run)))
        told = [event.message for event in events if isinstance(event, Warned) and "decayed to 0" in event.message]
        assert [message.partition(":")[0] for message in told] == ["iteration 2"]
        assert [event.checkpoint for event in events if isinstance(event, Evaluated)] == [0, 4]
        digests = [read_trainer_state(run.layout, number).policy_digest for number in range(5)]
        assert digests[0] != digests[1]
        assert digests[1:] == [digests[1]] * 4
        assert [(row.updates, row.learning_rate) for row in read_metrics(run.layout)] == [
            (1, 5e-4),
            *[(0, 0.0)] * 3,
        ]
        # Who extends it is told before anything is drawn.
        runtime = config.runtime.model_copy(update={"iterations": 5})
        longer = dataclasses.replace(run, config=config.model_copy(update={"runtime": runtime}))
        events = finish(loop(longer, shared_model(tiny_lcm), load_scorers(run)))
        told = [event.message for event in events if isinstance(event, Warned) and "decayed to 0" in event.message]
        (message,) = told
        assert "the 1 iterations that are left change nothing" in message
        assert run.layout.checkpoints()[-1] == 5

    @pytest.mark.parametrize("weight", [math.inf, math.nan])
    def test_weights_that_are_not_finite_are_never_published(self, config, tmp_path, monkeypatch, weight):
        run, model = prepare(tmp_path / "run", config)

        def spoil(optimizer):
            optimizer.param_groups[0]["params"][0].data[0, 0] = weight

        monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
        assert "weights infinite or NaN" in refuses_to_train(TrainingError, run, model)
        assert run.layout.checkpoints() == [0]


def test_one_step_leaves_no_action_to_train(tiny_lcm, tmp_path):
    config = make_config(tiny_lcm, sample={"steps": 1})
    run, model = create_run(tmp_path / "run", config), shared_model(tiny_lcm)
    for phase in (sample(run, model), loop(run, model, {})):
        with pytest.raises(ConfigError, match="no action to train; use --steps 2 or more"):
            finish(phase)


class TestSeveralUpdates:
    def test_make_the_clip_act(self, tiny_lcm, tmp_path):
        run, model = prepare(tmp_path / "run", make_config(tiny_lcm, train=UPDATES))
        metrics = finish(train(run, model))[-1].metrics
        assert metrics.updates == 6
        assert metrics.measured["ratio_drift"] <= 2e-6  # of the first minibatch
        assert metrics.measured["clip_fraction"] > 0.1
        assert abs(metrics.measured["ratio"] - 1) > 1e-5
        assert metrics.measured["approx_kl"] > 0
        assert read_trainer_state(run.layout, 1).optimizer_steps == 6

    def test_depend_on_the_clip_range_where_one_update_does_not(self, tiny_lcm, tmp_path):
        def trained(name, clip_range, **settings):
            objective = {"kind": "ppo", "clip_range": clip_range}
            run, model = prepare(tmp_path / name, make_config(tiny_lcm, objective=objective, train=settings))
            finish(train(run, model))
            return adapter(model)

        one = [trained(f"one-{clip}", clip_range=clip) for clip in (1e-4, 10.0)]
        assert largest_difference(*one) == 0
        several = [trained(f"several-{clip}", **UPDATES, clip_range=clip) for clip in (1e-4, 10.0)]
        assert largest_difference(*several) > 1e-4


@pytest.mark.parametrize("completed", [True, False])
def test_after_training_a_phase_takes_its_checkpoints_weights_and_not_those_left_in_memory(
    tiny_lcm, tmp_path, completed
):
    run, model = prepare(tmp_path / "run", make_config(tiny_lcm, train=UPDATES))
    before = raw_bytes(run.layout.rollout(0))
    training = train(run, model)
    if completed:
        finish(training)
        quarantine(run.layout.checkpoint(1))
    else:  # interrupted between two updates
        while not isinstance(next(training), Advanced):
            pass
        next(training)
        training.close()
    remove_record(run.layout.shard(0, 0, 2))
    finish(sample(run, model))
    assert raw_bytes(run.layout.rollout(0)) == before


def test_the_size_of_a_micro_batch_changes_the_result_by_rounding_alone(tiny_lcm, tmp_path):
    trained = {}
    for size in (24, 7, 1):
        config = make_config(tiny_lcm, train={**LINEAR, "kl_weight": 0.5}, runtime={"micro_batch_size": size})
        run, model = prepare(tmp_path / str(size), config)
        start = adapter(model)
        metrics = finish(train(run, model))[-1].metrics
        trained[size] = (adapter(model), metrics.measured)
    moved = largest_difference(start, trained[24][0])
    for size in (7, 1):
        assert largest_difference(trained[24][0], trained[size][0]) < 1e-4 * moved
        for name in ("loss", "ratio", "approx_kl", "grad_norm"):
            assert trained[size][1][name] == pytest.approx(trained[24][1][name], rel=1e-4, abs=1e-6)


def test_the_gradient_is_clipped_to_its_largest_norm(tiny_lcm, tmp_path):
    # Adam's first step is rate · g / (|g| + epsilon), so its norm here is nearly that of the clipped gradient.
    lengths, norms = {}, {}
    for limit in (5.0, 1e-3):
        config = make_config(tiny_lcm, train={**LINEAR, "max_grad_norm": limit})
        run, model = prepare(tmp_path / str(limit), config)
        start = adapter(model)
        norms[limit] = finish(train(run, model))[-1].metrics.measured["grad_norm"]
        moved = adapter(model)
        lengths[limit] = math.sqrt(sum((moved[name] - start[name]).pow(2).sum().item() for name in start))
    assert norms[5.0] == pytest.approx(norms[1e-3])  # the metric tells the norm before clipping
    assert norms[5.0] > 2e-3
    assert lengths[5.0] == pytest.approx(norms[5.0], rel=0.1)
    assert lengths[1e-3] == pytest.approx(1e-3, rel=0.1)


class TestKl:
    def trained(self, tiny_lcm, root, weight, iterations=2, **settings):
        config = make_config(tiny_lcm, train={"kl_weight": weight, **settings}, runtime={"iterations": iterations})
        run = make_loop(root, config)
        return [row.measured.get("kl_to_base") for row in read_metrics(run.layout)]

    def test_is_0_at_the_base_and_above_0_away_from_it(self, tiny_lcm, tmp_path):
        first, second = self.trained(tiny_lcm, tmp_path / "run", 1e-3)
        assert first == 0
        assert second > 0

    def test_is_not_computed_where_it_has_no_weight(self, tiny_lcm, tmp_path):
        assert self.trained(tiny_lcm, tmp_path / "run", 0.0) == [None, None]

    def test_with_a_huge_weight_keeps_the_policy_at_the_base(self, tiny_lcm, tmp_path):
        settings = {"iterations": 10, "adam_beta1": 0.0, "adam_beta2": 0.0}
        free = self.trained(tiny_lcm, tmp_path / "free", 1e-9, **settings)
        held = self.trained(tiny_lcm, tmp_path / "held", 1e9, **settings)
        assert free[1] == pytest.approx(held[1], rel=1e-3)  # at the base the penalty has no gradient
        assert held[-1] < free[-1] / 4


def test_the_learning_rate_of_its_iteration_is_used(tiny_lcm, tmp_path):
    run = make_loop(tmp_path / "run", make_config(tiny_lcm, train={"learning_rate": 0.1, "lr_decay_iterations": 4}))
    assert [row.learning_rate for row in read_metrics(run.layout)] == pytest.approx([0.075, 0.05])


class TestStartFromALora:
    @pytest.mark.parametrize("place", ["", "checkpoints/000002", f"checkpoints/000002/{LORA_FILE}"])
    def test_of_a_run_a_checkpoint_or_a_file(self, tiny_lcm, finished_run, tmp_path, place):
        source = finished_run
        run, model = prepare(tmp_path / "run", make_config(tiny_lcm, lora={"start": str(source / place)}))
        newest = digest_safetensors(source / "checkpoints/000002" / LORA_FILE)
        state = read_trainer_state(run.layout, 0)
        assert state.policy_digest == newest
        assert (state.number, state.optimizer_steps) == (0, 0)
        assert finish(train(run, model))[-1].metrics.measured["ratio_drift"] <= 2e-6

    def test_of_another_rank_is_refused(self, tiny_lcm, finished_run, tmp_path):
        config = make_config(tiny_lcm, lora={"start": str(finished_run), "rank": 3})
        run = create_run(tmp_path / "run", config)
        with pytest.raises(ConfigError, match=r"has rank 2, alpha 4, modules .*set \[lora\] to the same"):
            ensure_start(run, load_policy_model(config))
        assert run.layout.checkpoints() == []

    def test_that_is_not_there_is_refused(self, tiny_lcm, tmp_path):
        config = make_config(tiny_lcm, lora={"start": str(tmp_path / "nowhere")})
        with pytest.raises(ConfigError, match="no such file or folder"):
            ensure_start(create_run(tmp_path / "run", config), shared_model(tiny_lcm))


class TestPromptStatistics:
    @pytest.fixture
    def few_prompts(self, tiny_lcm, tmp_path):
        """A configuration in which every prompt comes often enough for statistics of its own."""
        (tmp_path / "prompts.txt").write_text("cat\ndog\ncow\nhen\n")
        return make_config(
            tiny_lcm,
            prompts={"source": str(tmp_path / "prompts.txt"), "held_out_fraction": 0.25},
            train={"min_count": 3, "buffer_size": 5},
        )

    def test_go_from_process_to_process_in_the_checkpoint(self, few_prompts, tmp_path):
        by_hand = make_by_hand(tmp_path / "by-hand", few_prompts)
        layout = make_loop(tmp_path / "loop", few_prompts).layout
        assert read_trainer_state(by_hand.layout, 2) == read_trainer_state(layout, 2)

        expected = {}
        (spec,) = by_hand.reward_specs().values()
        for iteration in range(2):
            manifest = read_manifest(layout.manifest(iteration))
            rewards = read_rewards(layout, manifest, spec.directory).tolist()
            _, expected = per_prompt_advantages(manifest.prompts, rewards, expected, buffer_size=5, min_count=3)
            of_component = {"compression/compressibility": expected}
            assert read_statistics(layout, iteration + 1) == of_component
            assert read_statistics(by_hand.layout, iteration + 1) == of_component
        assert max(len(kept) for kept in expected.values()) == 5

    def test_of_earlier_iterations_count(self, few_prompts, tmp_path, monkeypatch):
        remembered = make_loop(tmp_path / "remembered", few_prompts)
        monkeypatch.setattr(train_module, "read_statistics", lambda layout, number: {})
        forgotten = make_loop(tmp_path / "forgotten", few_prompts)
        digests = [
            [read_trainer_state(run.layout, number).policy_digest for run in (remembered, forgotten)]
            for number in (1, 2)
        ]
        assert digests[0][0] == digests[0][1]
        assert digests[1][0] != digests[1][1]


def test_the_optimizers_state_goes_from_checkpoint_to_checkpoint(tiny_lcm, finished_run, tmp_path, monkeypatch):
    run = copy_run(finished_run, tmp_path / "run")
    expected = read_trainer_state(run.layout, 2).policy_digest
    quarantine(run.layout.checkpoint(2))
    monkeypatch.setattr(train_module, "read_optimizer", lambda layout, number: {})
    finish(train(run, shared_model(tiny_lcm)))
    assert read_trainer_state(run.layout, 2).policy_digest != expected


class TestSeveralRewards:
    def test_are_stored_apart_and_trained_on_together(self, tiny_lcm, tmp_path):
        config = make_config(tiny_lcm, rewards={"compressibility": 2.0, "incompressibility": 0.5})
        run, model = prepare(tmp_path / "run", config)
        assert len(list(run.layout.rollout(0).glob("rewards/*/*.json"))) == 4
        metrics = finish(train(run, model))[-1].metrics
        parts = metrics.rewards
        assert parts["compressibility"] == pytest.approx(-parts["incompressibility"])
        assert metrics.reward_mean == pytest.approx(1.5 * parts["compressibility"])

    def test_that_lack_one_are_scored_for_that_one_alone(self, tiny_lcm, tmp_path):
        config = make_config(tiny_lcm, rewards={"compressibility": 1.0, "incompressibility": 0.5})
        run, _ = prepare(tmp_path / "run", config)
        before = raw_bytes(run.layout.root)
        remove_record(run.layout.reward_shard(0, run.reward_specs()["incompressibility"].directory, 1, 2))
        rewards = load_scorers(run)

        def not_again(images, prompts, metadata):
            raise AssertionError("the shards have this reward")

        events = finish(score(run, {**rewards, **scorers_of(run, {"compressibility": not_again})}))
        assert kinds(events) == ["PhaseStarted", "Advanced"]
        assert raw_bytes(run.layout.root) == before
