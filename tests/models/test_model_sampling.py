import pytest
import torch
from model_helpers import GUIDANCE, draw, draw_with_diffusers, edit_json, load_tiny

from rlcm_cli.phases.sample import tell_cut_prompts

PROMPTS, SEEDS = ["cat", "a dog on blue", "cat"], [5, 2**62 + 1, 7]


@pytest.fixture(scope="module")
def model(tiny_lcm):
    return load_tiny(tiny_lcm)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_an_image_is_that_of_the_pipeline_of_diffusers(model, steps):
    images = draw(model, PROMPTS, SEEDS, steps=steps).images
    assert torch.equal(images, draw_with_diffusers(model.pipeline, PROMPTS, SEEDS, steps=steps))
    # It could fail: the images are no plain colour, and prompts and seeds differ visibly.
    assert all(image.unique().numel() > 20 for image in images)
    assert not torch.equal(images[0], images[2])


def test_the_scaling_of_the_autoencoder_reaches_the_image(model, tiny_lcm_copy):
    edit_json(tiny_lcm_copy / "vae" / "config.json", scaling_factor=0.25)
    scaled = load_tiny(tiny_lcm_copy)
    images = draw(scaled, PROMPTS, SEEDS).images
    assert torch.equal(images, draw_with_diffusers(scaled.pipeline, PROMPTS, SEEDS))
    assert not torch.equal(images, draw(model, PROMPTS, SEEDS).images)


def test_prompt_seed_guidance_and_spacing_all_reach_the_image(model):
    image = draw(model, ["cat"], [5]).images
    assert not torch.equal(image, draw(model, ["dog"], [5]).images)
    assert not torch.equal(image, draw(model, ["cat"], [6]).images)
    assert not torch.equal(image, draw(model, ["cat"], [5], spacing="strided").images)
    conditioning = model.encode_prompts(["cat"])
    latents, timesteps = torch.ones(1, *model.latent_shape), torch.tensor([999])
    with torch.no_grad():
        outputs = [model.predict(latents, timesteps, conditioning, guidance) for guidance in (1.0, GUIDANCE)]
    assert not torch.equal(*outputs)


def test_predicting_at_mixed_timesteps_equals_one_by_one(model):
    latents = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([999, 19, 499])
    conditioning = model.encode_prompts(PROMPTS)
    with torch.no_grad():
        together = model.predict(latents, timesteps, conditioning, GUIDANCE)
        alone = [
            model.predict(
                latents[row, None],
                timesteps[row, None],
                {"prompt_embeds": conditioning["prompt_embeds"][row, None]},
                GUIDANCE,
            )
            for row in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_the_bytes_of_an_embedding_do_not_depend_on_the_prompts_beside_it(tiny_lcm):
    alone = load_tiny(tiny_lcm).encode_prompts(["cat"])["prompt_embeds"]
    for prompts in (["cat", "a much longer prompt about a dog"], ["", "dog", "cat"], ["cat"] * 9):
        beside = load_tiny(tiny_lcm).encode_prompts(prompts)["prompt_embeds"]
        assert torch.equal(beside[prompts.index("cat"), None], alone)
    assert not torch.equal(alone[0], load_tiny(tiny_lcm).encode_prompts(["dog"])["prompt_embeds"][0])


def test_prompts_are_encoded_one_a_call_and_once(tiny_lcm, monkeypatch):
    """The tiny text encoder's bytes happen not to depend on the batch; those of larger ones do."""
    model = load_tiny(tiny_lcm)
    encode, encoded = model.pipeline.encode_prompt, []
    monkeypatch.setattr(
        model.pipeline, "encode_prompt", lambda prompt, **rest: encoded.append(prompt) or encode(prompt, **rest)
    )
    embeds = model.encode_prompts(["cat", "dog", "cat"])["prompt_embeds"]
    assert torch.equal(embeds[0], embeds[2])
    model.encode_prompts(["dog", "bee"])
    assert encoded == ["cat", "dog", "bee"]


def test_an_embedding_is_that_of_the_pipeline(model):
    expected, _ = model.pipeline.encode_prompt("a dog on blue", torch.device("cpu"), 1, False)
    assert torch.equal(model.encode_prompts(["a dog on blue"])["prompt_embeds"], expected)


def test_the_batch_changes_the_latents_by_rounding_alone(model):
    together = draw(model, PROMPTS, SEEDS).trajectories.latents_BSCHW
    alone = torch.cat(
        [draw(model, [prompt], [seed]).trajectories.latents_BSCHW for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    )
    assert torch.equal(together[:, 0], alone[:, 0]), "the noise is the sample's own"
    assert (together - alone).abs().max() < 1e-5 * together.abs().max()


def test_the_sizes_are_those_of_the_pipeline(model):
    assert model.latent_shape == (4, 8, 8)
    assert draw(model, ["cat"], [0]).images.shape == (1, 3, *model.image_size)
    assert torch.equal(model.alphas_cumprod, model.pipeline.scheduler.alphas_cumprod)


def test_a_prompt_longer_than_the_encoder_reads_is_counted_and_says_nothing_else(model, capfd, caplog):
    longest = model.pipeline.tokenizer.model_max_length
    long, short = "very " * longest + "long cat", "a cat"
    assert model.count_cut_prompts([long, short, long + "!"]) == (2, longest)
    model.encode_prompts([long, long + " indeed"])
    assert "".join(capfd.readouterr()) + caplog.text == ""
    (event,) = tell_cut_prompts(model, [short, long, long])
    assert event.message.startswith(f"1 of 2 prompts is longer than the {longest} tokens that the text encoder reads")
    assert not list(tell_cut_prompts(model, [short]))
