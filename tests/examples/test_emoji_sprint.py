"""The recipe of the embedded flow model: its parametrisation, what its pipelines are fed, what a kill does to it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import SanaPipeline, SanaSprintPipeline
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from examples.emoji_lcm.classifiers import new_evaluation_classifier, save_classifier
from examples.emoji_lcm.data import Pictures
from examples.emoji_lcm.subjects import COLOUR_NAMES, SUBJECTS, all_captions, captions
from examples.emoji_lcm.training import per_sample
from examples.emoji_sprint import evaluate, text
from examples.emoji_sprint import student as distillation
from examples.emoji_sprint.autoencoder import SIZE, Shape, new_autoencoder
from examples.emoji_sprint.build import STAGES, Build, Settings, Training
from examples.emoji_sprint.pipelines import (
    at_own_size,
    new_student_pipeline,
    new_teacher_pipeline,
    new_transformer,
    round_weights,
    save_pipeline,
)
from examples.emoji_sprint.student import guess, level_of, new_student
from examples.emoji_sprint.text import LONGEST, WIDTH, Captions
from examples.emoji_sprint.training import Loop

SHAPE = Shape(4, (8, 8, 8, 8, 8), (1, 1, 1, 1, 1), (1, 1, 1, 1, 1))
FEW = Training(4, 3, 1e-2)
TINY = Settings(
    2,
    SHAPE,
    width=32,
    depth=1,
    autoencoder=FEW,
    decoder=FEW,
    text_encoder=FEW,
    teacher=FEW,
    trajectories=5,
    student=FEW,
)


@pytest.fixture(scope="module")
def tokenizer():
    return text.new_tokenizer()


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(1)
    return text.new_text_encoder(tokenizer).eval()


def random_transformer(*, guidance_embedding: bool):
    """A tiny one whose output depends on all that it is fed."""
    torch.manual_seed(2)
    model = new_transformer(channels=4, size=3, guidance_embedding=guidance_embedding, width=32, depth=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def fill(work):
    """Write what the stages before the training make, at random."""
    generator = torch.Generator().manual_seed(3)
    count = 2 * len(SUBJECTS)
    subject = torch.arange(len(SUBJECTS)).repeat(2)
    for name in ("pictures", "fresh", "real"):
        Pictures(
            torch.randint(0, 256, (count, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8),
            subject,
            torch.arange(count),
            torch.randint(0, len(COLOUR_NAMES), (count,), generator=generator),
        ).save(work / f"{name}.safetensors")
    rows = 1 + len(all_captions())
    embeds = torch.randn(rows, 7, WIDTH, generator=generator)
    Captions(embeds, torch.ones(rows, 7, dtype=torch.int64)).save(work / "captions.safetensors")


# The parametrisation


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_student_draws_by_guessing_and_adding_noise_again(tokenizer, encoder, steps):
    """Every factor of diffusers' pipeline and scheduler cancels in what the transformer is fed."""
    model = random_transformer(guidance_embedding=True)
    pipe = new_student_pipeline(new_autoencoder(SHAPE), encoder, tokenizer, model)
    pipe.set_progress_bar_config(disable=True)
    drawn = at_own_size(pipe)(
        prompt=["a cat"],
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(5)],
        output_type="latent",
    ).images
    generator = torch.Generator().manual_seed(5)
    embeds, mask = pipe.encode_prompt("a cat", complex_human_instruction=text.read_instruction(SanaSprintPipeline))
    angles = torch.tensor([math.pi / 2, 1.3, 0.0]) if steps == 2 else torch.linspace(math.pi / 2, 0, steps + 1)
    state = torch.randn(1, 4, 3, 3, generator=generator)
    for level, after in pairwise(level_of(angles)):
        with torch.no_grad():
            output = model(
                state,
                encoder_hidden_states=embeds,
                encoder_attention_mask=mask,
                timestep=level[None],
                guidance=torch.tensor([3.0 * model.config.guidance_embeds_scale]),
            ).sample
        guessed = guess(output, state, level[None])
        state = torch.lerp(guessed, torch.randn(1, 4, 3, 3, generator=generator), per_sample(after[None]))
    assert guessed.std() > 0.1
    torch.testing.assert_close(drawn, guessed, atol=2e-4, rtol=1e-4)


def test_the_teacher_is_told_the_noise_level_and_gives_the_velocity(tokenizer, encoder):
    model = random_transformer(guidance_embedding=False)
    pipe = new_teacher_pipeline(new_autoencoder(SHAPE), encoder, tokenizer, model)
    pipe.set_progress_bar_config(disable=True)
    drawn = at_own_size(pipe)(
        prompt="a cat",
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    captions = text.embed_captions(tokenizer, encoder, ["a cat"])
    state = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(5))
    for level, after in pairwise([*pipe.scheduler.sigmas.tolist()]):
        with torch.no_grad():
            both = model(state.repeat(2, 1, 1, 1), timestep=torch.full((2,), level), **captions.take([0, 1])).sample
        nothing, cat = both.chunk(2)
        state = state + (after - level) * (nothing + 2.0 * (cat - nothing))
    torch.testing.assert_close(drawn, state, atol=2e-4, rtol=1e-4)


def test_the_student_starts_as_its_teacher():
    teacher = random_transformer(guidance_embedding=False)
    student = new_student(teacher).eval()
    fed = {
        "hidden_states": torch.randn(3, 4, 3, 3),
        "encoder_hidden_states": torch.randn(3, 7, WIDTH),
        "timestep": torch.tensor([0.0, 0.4, 1.0]),
    }
    with torch.no_grad():
        wanted = teacher(**fed).sample
        for guidance in (0.1, 0.7):
            torch.testing.assert_close(student(**fed, guidance=torch.full((3,), guidance)).sample, wanted)


def test_a_trajectory_is_followed_with_second_order():
    """Of dy/dτ = y + τ, whose solution is known, at levels that are not evenly spaced."""
    levels = distillation.draw_levels(3, torch.Generator().manual_seed(1)).double()
    assert levels.shape == (3, distillation.INTERVALS + 1)
    assert (levels.diff() < 0).all()
    torch.testing.assert_close(levels[:, [0, -1]], torch.tensor([[1.0, 0.0]] * 3).double(), atol=1e-6, rtol=0)
    start = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    states = distillation.follow(lambda y, level: y + per_sample(level), start, levels)
    exact = 3 * torch.exp(levels - 1) - levels - 1
    euler = start[:, 0, 0, 0]
    for now, after in pairwise(levels.T):
        euler = euler + (after - now) * (euler + now)
    off = (states[:, -1, 0, 0, 0] - exact[:, -1]).abs()
    assert (off < 0.2 * (euler - exact[:, -1]).abs()).all()
    torch.testing.assert_close(states[:, :, 0, 0, 0], exact, atol=4e-2, rtol=0)


def test_trajectories_follow_the_guided_teacher(undisturbed, monkeypatch, tmp_path):
    made = build(undisturbed)
    kept = made.trajectories()
    assert kept.states.shape == (5, distillation.INTERVALS + 1, 4, 3, 3)
    assert ((kept.guidance >= 1) & (kept.guidance <= 7)).all()
    teacher, captions = made.teacher(), made.captions()
    first = kept.states[:, 0].float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        conditional = teacher(first, timestep=torch.ones(5), **captions.take(kept.caption)).sample.float()
        nothing = captions.take(torch.zeros(5, dtype=torch.int64))
        unconditional = teacher(first, timestep=torch.ones(5), **nothing).sample.float()
    velocity = unconditional + per_sample(kept.guidance) * (conditional - unconditional)
    wanted = first + per_sample(kept.levels[:, 1] - 1) * velocity
    torch.testing.assert_close(kept.states[:, 1].float(), wanted, atol=5e-3, rtol=5e-3)


def test_trajectories_are_of_captions_that_training_pictures_carry(undisturbed):
    made = build(undisturbed)
    latents, slots = made.latents(), text.caption_slots()
    carried = set(slots[latents["subject"], latents["colour"]].flatten().tolist())
    assert set(made.trajectories().caption.tolist()) <= carried


def test_of_trajectories_only_missing_files_are_drawn(undisturbed, monkeypatch, tmp_path):
    monkeypatch.setattr(distillation, "CHUNK", 2)
    made = build(undisturbed)
    latents, captions = made.latents(), made.captions()

    def draw():
        return distillation.draw_trajectories(
            made.teacher(),
            latents["subject"],
            latents["colour"],
            captions,
            tmp_path / "drawn",
            count=5,
            seed=0,
            device=torch.device("cpu"),
        )

    whole = draw()
    files = sorted((tmp_path / "drawn").iterdir())
    assert len(files) == 3
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    again = draw()
    assert files[0].stat().st_mtime_ns == before
    assert all(torch.equal(a, b) for a, b in zip(vars(whole).values(), vars(again).values(), strict=True))


# Prompts


def test_captions_are_encoded_as_the_pipelines_encode_them(tokenizer, encoder):
    texts = ["cat", "a zebra on blue", "an octopus on a green background"]
    ours = text.embed_captions(tokenizer, encoder, texts)
    student = SanaSprintPipeline(tokenizer, encoder, None, None, None)
    instructed = {"complex_human_instruction": text.read_instruction(SanaSprintPipeline)}
    with torch.no_grad():
        embeds, mask = student.encode_prompt(texts, **instructed)
        nothing, nothing_mask = student.encode_prompt("", complex_human_instruction=None)
    tokens = ours.mask.shape[1]
    assert ours.mask.tolist() == [*nothing_mask[:, :tokens].tolist(), *mask[:, :tokens].tolist()]
    assert not mask[:, tokens:].any()
    assert ours.mask[0].sum() == 1
    kept = ours.mask.bool()
    torch.testing.assert_close(ours.embeds[kept], torch.cat([nothing, embeds])[:, :tokens][kept], atol=1e-5, rtol=1e-5)
    # … and as the encoder is trained on them.
    prefix, ids, _ = text.tokenize(tokenizer, texts)
    with torch.no_grad():
        trained = text.encode_after(encoder, prefix, ids)
    of_prompt = kept[1:, 1:]
    torch.testing.assert_close(trained[of_prompt], ours.embeds[1:, 1:][of_prompt], atol=1e-5, rtol=1e-5)


def test_every_word_of_a_caption_is_one_token(tokenizer):
    for caption in all_captions():
        assert len(tokenizer(f" {caption}").input_ids) == 1 + len(caption.split()) < LONGEST


def test_a_picture_gets_the_captions_of_its_subject_and_colour():
    slots = text.caption_slots()
    texts = ["", *all_captions()]
    for subject, colour in ((0, 0), (3, 5), (64, 8)):
        found = {texts[row] for row in slots[subject, colour]}
        assert found == set(captions(SUBJECTS[subject], COLOUR_NAMES[colour]))


# The stages


def build(work, **settings):
    work.mkdir(exist_ok=True)
    return Build(work, torch.device("cpu"), finished=None, settings=TINY, checkpoint_seconds=0, **settings)


class Killed(BaseException):
    """The process is no more."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    work = tmp_path_factory.mktemp("undisturbed")
    fill(work)
    build(work).run(STAGES[: STAGES.index("decoder") + 1])
    return work


@pytest.mark.parametrize("name", ["text_encoder", "autoencoder", "teacher", "student", "decoder"])
def test_a_stage_that_is_killed_ends_as_an_undisturbed_one(undisturbed, tmp_path, monkeypatch, name):
    fill(tmp_path)
    for made in STAGES[: STAGES.index(name)]:
        for path in [*undisturbed.glob(made), *undisturbed.glob(f"{made}.safetensors")]:
            if not (tmp_path / path.name).exists():
                (tmp_path / path.name).symlink_to(path)
    save = Loop._save

    def die_after_the_second(loop, parts, step):
        save(loop, parts, step)
        if step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save", die_after_the_second)
        with pytest.raises(Killed):
            build(tmp_path).run([name])
    assert not (tmp_path / name).exists()
    torch.manual_seed(1234)
    build(tmp_path).run([name])
    assert "goes on after step 2" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    weights = [path.name for path in (undisturbed / name).glob("*.safetensors")]
    assert weights
    for weight in weights:
        assert (tmp_path / name / weight).read_bytes() == (undisturbed / name / weight).read_bytes()


def test_what_is_there_is_not_made_again(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}
    build(undisturbed).run(STAGES[: STAGES.index("decoder") + 1])
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")} == before


def test_finished_parts_are_taken_instead_of_trained(undisturbed, tmp_path):
    fill(tmp_path)
    finished = tmp_path / "finished"
    finished.mkdir()
    parts = {"tokenizer": "tokenizer", "text_encoder": "text_encoder", "decoder": "vae"}
    for stage, part in parts.items():
        (finished / part).symlink_to(undisturbed / stage)
    begun = Build(tmp_path, torch.device("cpu"), finished=finished, settings=TINY)
    begun.run([*parts, "autoencoder"])
    for stage, part in (*parts.items(), ("autoencoder", "vae")):
        weights = (finished / part).glob("*.safetensors")
        assert all((tmp_path / stage / file.name).read_bytes() == file.read_bytes() for file in weights)
    assert "autoencoder 1" not in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_latents_have_unit_variance(undisturbed):
    latents = build(undisturbed).latents()["latents"].float()
    assert latents.shape[1:] == (4, 3, 3)
    assert latents.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)


def test_the_folders_are_plain_pipelines_in_float16(tokenizer, encoder, tmp_path):
    for kind, put_together, guided in (
        (SanaSprintPipeline, new_student_pipeline, True),
        (SanaPipeline, new_teacher_pipeline, False),
    ):
        pipe = put_together(new_autoencoder(SHAPE), encoder, tokenizer, random_transformer(guidance_embedding=guided))
        save_pipeline(pipe, tmp_path / kind.__name__)
        encoder.float()
        for part in ("transformer", "vae"):
            (file,) = (tmp_path / kind.__name__ / part).glob("*.safetensors")
            assert not any((weight.view(torch.int16) & 3).any() for weight in load_file(file).values())
        loaded = evaluate.load(tmp_path / kind.__name__, kind, torch.device("cpu"))
        assert {part.dtype for part in (loaded.transformer, loaded.vae, loaded.text_encoder)} == {torch.float32}
        images = evaluate.sample(at_own_size(loaded), ["a cat", "a dog"], 7, 2, 3.0)
        assert images.shape == (2, SIZE, SIZE, 3)
        assert (images[0] != images[1]).any()


def test_weights_are_rounded_to_the_nearest():
    module = torch.nn.Linear(64, 64)
    exact = module.weight.detach().half()
    round_weights(module)
    # Half of four last places, of numbers down to 2⁻¹⁴.
    assert ((module.weight - exact).float().abs() <= 2 * exact.float().abs().clamp(min=2**-14) * 2**-10).all()


@pytest.mark.slow
def test_the_pipelines_are_measured(undisturbed, tmp_path):
    for path in undisturbed.iterdir():
        (tmp_path / path.name).symlink_to(path)
    torch.manual_seed(4)
    save_classifier(new_evaluation_classifier(), tmp_path / "classifier", SIZE)
    whole = build(tmp_path)
    whole.run(["folders"])
    figures = evaluate.evaluate(tmp_path, torch.device("cpu"), samples=1)
    evaluate.write(tmp_path, figures)
    whole.run(["evaluation", "cards"])
    cards = {
        name: (tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("emoji-sprint", "emoji-sana")
    }
    assert all("real pictures, fresh augmentations" in card for card in cards.values())
    assert "student, 4 steps" in cards["emoji-sprint"]
    assert "student, 4 steps" not in cards["emoji-sana"]
    rows = figures["recognised"]
    assert list(rows)[1:] == ["student, 1 step", "student, 2 steps", "student, 4 steps", "teacher, 20 Euler steps"]
    assert all(0 <= row["share"] <= 1 for row in rows.values())
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    assert classifier.config.num_labels == 45
    assert {path.stem for path in tmp_path.glob("*.png")} >= {
        "contact_sheet",
        "steps",
        "styles",
        "colours",
        "guidance",
    }
