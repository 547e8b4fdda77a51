import functools
import json
import shutil

import pytest
import torch

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import RewardSpec, composition, load_reward
from rlcm_cli.rewards._scenes import (
    Detection,
    NamedObject,
    Relation,
    Scene,
    holds,
    overlap,
    parse_scene,
    pick_instances,
    score_scene,
)


def scene(*objects, relation=None):
    named = tuple(NamedObject(*one) if isinstance(one, tuple) else NamedObject(one) for one in objects)
    return Scene(named, (Relation(relation, 0, 1),) if relation else ())


class TestParsing:
    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            ("a cat", scene("cat")),
            ("Cat", scene("cat")),
            ("a cat and a dog", scene("cat", "dog")),
            ("cats, dogs & a sea lion", scene("cats", "dogs", "sea lion")),
            ("a photo of a cat", scene("cat")),
            ("An oil painting of an apple", scene("apple")),
            ("a portrait of the queen with a crown", scene("queen", "crown")),
            ("three tigers", scene(("tigers", 3))),
            ("12 small birds", scene(("small birds", 12))),
            ("two red apples and one green bowl", scene(("red apples", 2), "green bowl")),
            ("a cat on blue", scene("cat")),
            ("a cat on a sofa and a dog", scene("cat", "dog")),
            ("a dog riding a bike", scene("dog", "bike")),
            ("a dog washing the dishes", scene("dog", "dishes")),
            ("a man chewing a bone", scene("man chewing", "bone")),
            ("a black-and-white cat", scene("black-and-white cat")),
            ("a cat behind a dog", scene("cat", "dog")),
            ("a band of four", scene("band")),
            ("one overcoat, an underpass", scene("overcoat", "underpass")),
            ("", scene()),
            ("two", scene()),
            ("in the garden", scene()),
        ],
    )
    def test_objects(self, prompt, expected):
        assert parse_scene(prompt) == expected

    @pytest.mark.parametrize(
        ("words", "kind"),
        [
            ("left of", "left_of"),
            ("to the left of", "left_of"),
            ("on the left side of", "left_of"),
            ("is sitting to the left of", "left_of"),
            ("on the right of", "right_of"),
            ("above", "above"),
            ("on top of", "above"),
            ("over", "above"),
            ("below", "below"),
            ("underneath", "below"),
            ("under", "below"),
            ("next to", "next_to"),
            ("on the side of", "next_to"),
            ("near", "next_to"),
        ],
    )
    def test_relations(self, words, kind):
        assert parse_scene(f"a cat {words} a big dog") == scene("cat", "big dog", relation=kind)

    def test_relations_connect_neighbours(self):
        assert parse_scene("a cat and two dogs below a sun, next to a tree").relations == (
            Relation("below", 1, 2),
            Relation("next_to", 2, 3),
        )

    @pytest.mark.parametrize("prompt", ["left of a dog", "a dog to the left of", "a dog with a sun above it"])
    def test_a_relation_to_nothing_is_none(self, prompt):
        assert parse_scene(prompt).relations == ()

    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            ("two big cats left of a sea lion", scene(("cat", 2), "sea lion", relation="left_of")),
            ("a lion and a sea lion", scene("lion", "sea lion")),
            ("Boxes on a sofa", scene("box", "Sofa")),
            ("a caterpillar and a sealion", scene()),
            ("five chairs, a cat", scene("cat")),
            ("five old chairs cat", scene(("cat", 5))),
        ],
    )
    def test_with_a_list_of_names_only_those_are_found(self, prompt, expected):
        assert parse_scene(prompt, ["lion", "cat", "sea lion", "Sofa", "box"]) == expected

    def test_names_of_a_scene_are_unique_and_in_order(self):
        assert parse_scene("a dog and a cat and a dog").names == ("dog", "cat")


def at(x, y, size=0.2, confidence=0.5):
    return Detection(confidence, (x - size / 2, y - size / 2, x + size / 2, y + size / 2))


class TestOverlap:
    @pytest.mark.parametrize(
        ("other", "expected"),
        [((0, 0, 2, 2), 1.0), ((1, 0, 3, 2), 1 / 3), ((1, 1, 3, 3), 1 / 7), ((2, 0, 4, 2), 0.0), ((5, 5, 6, 6), 0.0)],
    )
    def test_it_is_the_intersection_over_the_union(self, other, expected):
        assert overlap((0, 0, 2, 2), other) == pytest.approx(expected)

    def test_boxes_without_an_area_do_not_overlap(self):
        assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0


class TestInstances:
    def test_boxes_of_the_same_object_count_once(self):
        first, same, second = at(0.3, 0.5, confidence=0.9), at(0.32, 0.5, confidence=0.8), at(0.7, 0.5, confidence=0.4)
        assert pick_instances([second, same, first], 2) == [first, second]
        assert pick_instances([second, same, first], 1) == [first]
        assert pick_instances([first, same], 2) == [first]


class TestRelations:
    @pytest.mark.parametrize(
        ("kind", "x", "y", "expected"),
        [
            ("left_of", 0.2, 0.5, True),
            ("left_of", 0.8, 0.5, False),
            ("left_of", 0.2, 0.2, False),
            ("left_of", 0.2, 0.25, True),
            ("left_of", 0.5, 0.2, False),
            ("right_of", 0.8, 0.5, True),
            ("right_of", 0.2, 0.5, False),
            ("above", 0.5, 0.2, True),
            ("above", 0.5, 0.8, False),
            ("above", 0.9, 0.2, False),
            ("below", 0.5, 0.8, True),
            ("below", 0.5, 0.2, False),
            ("next_to", 0.2, 0.5, True),
            ("next_to", 0.8, 0.8, True),
            ("next_to", 0.5, 0.95, False),
            ("next_to", 0.05, 0.5, False),
            ("next_to", 0.95, 0.5, False),
            ("next_to", 0.5, 0.05, False),
        ],
    )
    def test_the_place_of_a_box_about_one_in_the_middle(self, kind, x, y, expected):
        assert holds(kind, at(x, y).box, at(0.5, 0.5).box) is expected

    @pytest.mark.parametrize("kind", ["left_of", "next_to"])
    def test_boxes_that_overlap_stand_in_no_relation(self, kind):
        assert holds(kind, at(0.32, 0.5).box, at(0.5, 0.5).box)
        assert not holds(kind, at(0.4, 0.5).box, at(0.5, 0.5).box)


class TestScores:
    def test_the_mean_confidence_over_everything_named(self):
        found = {"cat": [at(0.2, 0.2, confidence=0.9), at(0.8, 0.8, confidence=0.6)], "dog": [at(0.5, 0.5)]}
        assert score_scene(scene("cat"), found) == pytest.approx(0.9)
        assert score_scene(scene("cat", "dog"), found) == pytest.approx(0.7)
        assert score_scene(scene(("cat", 2), "dog"), found) == pytest.approx(2 / 3)
        assert score_scene(scene("cat", "dog", "cat"), found) == pytest.approx(2 / 3)
        assert score_scene(scene(("cat", 4), "dog"), found) == pytest.approx(0.4)
        assert score_scene(scene("horse"), found) == 0
        assert score_scene(scene("horse", "cat"), {**found, "horse": []}) == pytest.approx(0.45)

    def test_a_broken_relation_halves_the_score(self):
        found = {"cat": [at(0.2, 0.5)], "dog": [at(0.8, 0.5)]}
        assert score_scene(scene("cat", "dog", relation="left_of"), found) == pytest.approx(0.5)
        assert score_scene(scene("cat", "dog", relation="right_of"), found) == pytest.approx(0.25)

    def test_wrong_places_are_better_than_a_missing_object(self):
        both = score_scene(scene("cat", "dog", relation="above"), {"cat": [at(0.2, 0.5)], "dog": [at(0.8, 0.5)]})
        one = score_scene(scene("cat", "dog", relation="above"), {"cat": [at(0.2, 0.5)]})
        assert (both, one) == (pytest.approx(0.25), pytest.approx(0.125))

    def test_several_relations_share(self):
        found = {"cat": [at(0.2, 0.5)], "dog": [at(0.8, 0.5)], "sun": [at(0.8, 0.1)]}
        asked = parse_scene("a cat left of a dog below a sun")
        assert score_scene(asked, found) == pytest.approx(0.5)
        found["sun"] = [at(0.8, 0.9)]
        assert score_scene(asked, found) == pytest.approx(0.375)

    def test_of_several_boxes_one_pair_is_enough_but_not_a_box_and_itself(self):
        pair = [at(0.2, 0.5), at(0.8, 0.5)]
        assert score_scene(scene("cat", "cat", relation="left_of"), {"cat": pair}) == pytest.approx(0.5)
        assert score_scene(scene("cat", "cat", relation="next_to"), {"cat": pair[:1]}) == pytest.approx(0.125)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_tokenizer(folder):
    """A CLIP tokenizer of letters, in the hub's files."""
    from transformers import CLIPTokenizerFast

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    # 0 is the padding of an unused query.
    vocabulary = {word: index for index, word in enumerate(["!", *words])}
    folder.mkdir(parents=True, exist_ok=True)
    CLIPTokenizerFast(vocab=vocabulary, merges=[], pad_token="!").save_pretrained(folder)  # noqa: S106
    return len(vocabulary)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    folder = tmp_path_factory.mktemp("detectors") / "owlv2"
    size = save_tokenizer(folder)
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 0}
    config = Owlv2Config(
        text_config={**tower, **text, "max_position_embeddings": 24, "initializer_factor": 20.0},
        vision_config={**tower, "image_size": 32, "patch_size": 8, "initializer_factor": 20.0},
        projection_dim=16,
    )
    model = Owlv2ForObjectDetection(config)
    with torch.no_grad():
        # Otherwise all texts look the same, and confidences are 0 or 1.
        model.owlv2.text_model.embeddings.token_embedding.weight.normal_()
        model.class_head.logit_scale.weight.zero_()
    model.save_pretrained(folder)
    preprocessing = {
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.fixture
def detector(trained, tmp_path):
    """A detector of one's own, to be damaged."""
    return shutil.copytree(trained, tmp_path / "detector")


def images(count, height=32, width=32):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def load(folder, **settings):
    return load_reward(spec(folder, **settings)).function


def spec(folder, **settings):
    return RewardSpec("composition", {"model": str(folder), **settings})


@functools.cache
def load_transformers(folder):
    """The model and the tokenizer, by transformers' own loaders."""
    from transformers import AutoTokenizer, Owlv2ForObjectDetection

    return Owlv2ForObjectDetection.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def run(folder, pixels, names):
    """Confidences [N, names] and boxes [N, 4] of transformers' own model for one image."""
    model, tokenizer = load_transformers(folder)
    texts = tokenizer(
        [f"a photo of a {name}" for name in names], padding="max_length", max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(pixel_values=pixels[None], input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
    return output.logits[0].sigmoid(), output.pred_boxes[0]


def normalised(image):
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    return (image / 255 - mean[:, None, None]) / std[:, None, None]


def best_fits(found):
    """The confidences of all boxes, whichever name they fit."""
    return sorted(detection.confidence for detections in found.values() for detection in detections)


class TestDetector:
    def test_a_name_gets_the_confidence_of_its_best_box(self, trained):
        batch = images(3)
        expected = [run(trained, normalised(image), ["cat"])[0].max() for image in batch]
        rewards = load(trained, threshold=0.0)(batch, ["a cat", "Cat", "the cat"], [{}] * 3)
        assert rewards.dtype == torch.float32
        torch.testing.assert_close(rewards, torch.stack(expected), rtol=1e-5, atol=1e-6)
        assert len(set(rewards.tolist())) == 3

    def test_a_box_belongs_to_the_name_that_it_fits_best(self, trained):
        image = images(1)[0]
        confidences, _ = run(trained, normalised(image), ["cat", "dog", "ox"])
        best, owner = confidences.max(dim=1)
        expected = sum(best[owner == index].max().item() for index in range(3) if (owner == index).any()) / 3
        assert load(trained, threshold=0.0)(image[None], ["cat, dog, ox"], [{}]).item() == pytest.approx(expected)
        assert len(set(owner.tolist())) > 1

    def test_prompts_with_fewer_names_are_padded_without_effect(self, trained):
        batch, names = images(2), [["cat"], ["dog", "ox", "bee"]]
        detector = load(trained)._detector
        together = detector(batch, names, threshold=0.0)
        for row, found in enumerate(together):
            (alone,) = detector(batch[row : row + 1], names[row : row + 1], threshold=0.0)
            assert found.keys() == alone.keys() == set(names[row])
            # Which of two names a box fits better may be a matter of rounding; how well it fits is not.
            assert best_fits(found) == pytest.approx(best_fits(alone), rel=1e-5, abs=1e-6)

    def test_a_prompt_of_one_name_is_padded_without_effect_on_its_reward(self, trained):
        batch, reward = images(2), load(trained, threshold=0.0)
        together = reward(batch, ["a cat", "a dog, an ox, a bee"], [{}] * 2)[:1]
        torch.testing.assert_close(together, reward(batch[:1], ["a cat"], [{}]), rtol=1e-5, atol=1e-6)

    def test_batches_larger_than_8_keep_their_order(self, trained):
        batch = images(11)
        reward = load(trained, threshold=0.0)
        prompts = ["a cat", "a dog"] * 5 + ["a bee"]
        alone = torch.cat([reward(batch[i : i + 1], prompts[i : i + 1], [{}]) for i in range(11)])
        torch.testing.assert_close(reward(batch, prompts, [{}] * 11), alone, rtol=1e-5, atol=1e-6)

    def test_what_is_below_the_threshold_is_not_there(self, trained):
        batch = images(4)
        free = load(trained, threshold=0.0)(batch, ["cat"] * 4, [{}] * 4)
        floor = free.sort().values[1:3].mean().item()
        cut = load(trained, threshold=floor)(batch, ["cat"] * 4, [{}] * 4)
        torch.testing.assert_close(cut, free * (free > floor), rtol=1e-6, atol=0)
        assert (cut == 0).sum() == 2

    def test_boxes_are_left_top_right_bottom(self, trained):
        image = images(1)[0]
        _, centred = run(trained, normalised(image), ["cat"])
        detector = composition._Detector(trained)
        found = detector(image[None], [["cat"]], 0.0)[0]["cat"]
        assert len(found) == 16
        for one, (x, y, width, height) in zip(found, centred.tolist(), strict=True):
            expected = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            assert one.box == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(("height", "width"), [(32, 16), (16, 32)])
    def test_other_shapes_are_padded_with_grey_at_the_end(self, trained, height, width):
        image = images(1, height, width)[0]
        square = torch.full((3, 32, 32), 128, dtype=torch.uint8)
        square[:, :height, :width] = image
        reward = load(trained, threshold=0.0)
        assert torch.equal(reward(image[None], ["cat"], [{}]), reward(square[None], ["cat"], [{}]))

    def test_other_sizes_are_resized_bilinearly(self, trained):
        from PIL import Image

        image = images(1, 40, 40)[0]
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BILINEAR)
        pixels = torch.tensor(list(resized.get_flattened_data()), dtype=torch.float32).T.reshape(3, 32, 32)
        found = composition._Detector(trained)._pixels(image[None])[0]
        one_level = 1.01 / 255 / 0.2
        torch.testing.assert_close(found, normalised(pixels), rtol=0, atol=one_level)

    def test_long_names_are_cut_to_what_the_text_tower_takes(self, trained):
        assert load(trained)(images(1), ["a " + "very " * 30 + "long cat"], [{}]).isfinite().all()

    def test_only_the_listed_objects_are_looked_for(self, trained):
        batch = images(1)
        listed = load(trained, threshold=0.0, objects=["ox"])(batch, ["a cat and an ox"], [{}])
        assert torch.equal(listed, load(trained, threshold=0.0)(batch, ["an ox"], [{}]))

    @pytest.mark.parametrize(("prompt", "objects"), [("", []), ("in the garden", []), ("a cat", ["dog"])])
    def test_a_prompt_without_an_object_is_refused(self, trained, prompt, objects):
        with pytest.raises(RewardError, match=r"names no object.*use prompts that do") as caught:
            load(trained, objects=objects)(images(1), [prompt], [{}])
        assert "\n" not in str(caught.value)

    def test_loading_and_scoring_print_nothing(self, trained, capfd):
        load(trained)(images(1), ["a cat"], [{}])
        assert capfd.readouterr() == ("", "")


class TestRefusals:
    def refusal(self, folder, kind=RewardError, **settings):
        with pytest.raises(kind) as caught:
            load(folder, **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("threshold", [-0.1, 1, float("nan"), True, "high"])
    def test_an_impossible_threshold(self, trained, threshold):
        assert "from 0 to below 1" in self.refusal(trained, ConfigError, threshold=threshold)

    @pytest.mark.parametrize("objects", ["cat", [""], [3], 3, None])
    def test_objects_that_are_no_names(self, trained, objects):
        assert "must be a list of names" in self.refusal(trained, ConfigError, objects=objects)

    def test_weights_that_are_not_here(self, monkeypatch):
        import huggingface_hub

        def snapshot_download(*args, **kwargs):
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        message = self.refusal(composition.DETECTOR.source)
        assert f"hf download {composition.DETECTOR.source}" in message
        assert "620 MB" in message
        assert "hf download" in RewardSpec("composition").find_obstacle()

    def test_weights_without_a_trained_head(self, detector):
        from safetensors.torch import load_file, save_file

        weights = load_file(detector / "model.safetensors")
        del weights["class_head.dense0.bias"]
        save_file(weights, detector / "model.safetensors", metadata={"format": "pt"})
        assert "lack class_head.dense0.bias" in self.refusal(detector)

    def test_cut_off_weights(self, detector):
        path = detector / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        assert "cannot be loaded" in self.refusal(detector)

    def test_a_model_of_another_kind(self, detector):
        config = json.loads((detector / "config.json").read_text())
        (detector / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
        assert "cannot be loaded" in self.refusal(detector)

    def test_a_detector_of_another_kind(self, trained, detector):
        from transformers import OwlViTConfig, OwlViTForObjectDetection

        shared = json.loads((trained / "config.json").read_text())
        parts = {key: {**shared[key], "model_type": None} for key in ("text_config", "vision_config")}
        parts = {key: {k: v for k, v in part.items() if v is not None} for key, part in parts.items()}
        OwlViTForObjectDetection(OwlViTConfig(**parts, projection_dim=16)).save_pretrained(detector)
        assert "holds a model of type owlvit, not owlv2" in self.refusal(detector)

    def test_a_missing_tokenizer(self, detector):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (detector / name).unlink()
        assert "holds no tokenizer" in self.refusal(detector)

    def test_missing_preprocessing(self, detector):
        (detector / "preprocessor_config.json").unlink()
        assert "preprocessor_config.json cannot be read" in self.refusal(detector)


class TestRevision:
    def revision(self, folder):
        return spec(folder).revise(spec(folder).find_paths())

    def test_the_place_has_no_part(self, detector, tmp_path):
        before = self.revision(detector)
        assert self.revision(detector.rename(tmp_path / "moved")) == before

    @pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "tokenizer.json"])
    def test_every_file_has(self, detector, name):
        before = self.revision(detector)
        (detector / name).write_bytes((detector / name).read_bytes() + b" ")
        assert self.revision(detector) != before

    def test_a_folder_is_no_obstacle(self, trained):
        assert spec(trained).find_obstacle() is None
