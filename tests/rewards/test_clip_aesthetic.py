import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_clip import (
    WIDTHS,
    assert_any_split,
    cut_off_hub,
    images,
    load,
    obstacle,
    refusal,
    revision,
    save_small_clip,
    score,
)

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.aesthetic import aesthetic
from rlcm_cli.rewards.networks.linear_head import make_linear_head
from rlcm_cli.rewards.networks.tensor_file import read_tensors

PARITY = Path(__file__).parents[1] / "data" / "parity"
LAION = PARITY / "aesthetic_head.safetensors"


class Hostile:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def small_head(tmp_path_factory):
    """A head for the small model, as torch.save leaves one."""
    torch.manual_seed(0)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout(0.2)
    layers = torch.nn.Sequential(
        linear(WIDTHS["projection_dim"], 8), dropout, linear(8, 7), dropout, linear(7, 6), dropout, linear(6, 5),
        linear(5, 1),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save({f"layers.{name}": 3 * tensor for name, tensor in layers.state_dict().items()}, path)
    return path


class TestLaionHead:
    @pytest.fixture(params=["safetensors", "pth", "pth of the old format"])
    def head(self, request, tmp_path):
        if request.param == "safetensors":
            return LAION
        path = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
        torch.save(load_file(LAION), path, _use_new_zipfile_serialization=request.param == "pth")
        return path

    def test_it_equals_the_published_code(self, head):
        cases = load_file(PARITY / "aesthetic_head_cases.safetensors")
        embeddings = torch.nn.functional.normalize(cases["clip_image_embedding"], dim=-1)
        scores = make_linear_head(read_tensors(head, reward="aesthetic"), reward="aesthetic")(embeddings)
        torch.testing.assert_close(scores, cases["score"], rtol=0, atol=1e-5)

    def test_it_is_of_another_width_than_a_small_model(self, clip, head):
        message = refusal(RewardError, "aesthetic", model=str(clip), head=str(head))
        assert "the head takes embeddings of 768 values" in message


class TestReward:
    def test_it_is_the_head_on_the_unit_embedding(self, clip, small_head):
        from transformers import CLIPModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        batch, layers = images(5), torch.load(small_head, weights_only=True)
        pixels = CLIPImageProcessorPil.from_pretrained(clip)(list(batch), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            embeddings = CLIPModel.from_pretrained(clip).eval().get_image_features(pixels).pooler_output
        embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
        for place in (0, 2, 4, 6, 7):
            embeddings = embeddings @ layers[f"layers.{place}.weight"].T + layers[f"layers.{place}.bias"]
        expected = embeddings[:, 0]
        rewards = score("aesthetic", batch, ["a cat"] * 5, model=str(clip), head=str(small_head))
        torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5)
        assert rewards.std() > 0.01

    def test_the_factory_takes_paths(self, clip, small_head):
        batch = images(2)
        expected = score("aesthetic", batch, ["a cat"] * 2, model=str(clip), head=str(small_head))
        assert torch.equal(aesthetic(clip, small_head)(batch, [], []), expected)

    def test_any_batch_split_gives_the_same(self, clip, small_head):
        reward = load("aesthetic", model=str(clip), head=str(small_head))
        assert_any_split(reward, images(66), ["a cat"] * 66, tolerance=1e-5)

    def test_another_head_is_another_revision(self, clip, small_head, tmp_path):
        other = shutil.copy(small_head, tmp_path / "other.pth")
        with open(other, "ab") as file:
            file.write(b" ")
        one, two = (revision("aesthetic", model=str(clip), head=str(head)) for head in (small_head, other))
        assert one != two


class TestHeadsThatCannotBeUsed:
    @pytest.fixture(autouse=True)
    def _model(self, clip):
        self.model = str(clip)

    def refused(self, head):
        return refusal(RewardError, "aesthetic", head=str(head), model=self.model)

    @pytest.mark.parametrize("form", ["zip", "bare pickle"])
    def test_a_hostile_file_is_refused_and_not_run(self, tmp_path, form):
        head, trace = tmp_path / "head.pth", tmp_path / "trace"
        if form == "zip":
            torch.save({"layers.0.weight": Hostile(trace)}, head)
        else:
            head.write_bytes(pickle.dumps(Hostile(trace)))
        assert "head.pth is refused: it is damaged, or holds something else than tensors" in self.refused(head)
        assert not trace.exists()
        pickle.loads(pickle.dumps(Hostile(trace)))  # noqa: S301
        assert trace.exists()  # the payload works where nobody looks

    @pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04 a damaged zip", b"\x80\x02}"])
    def test_a_damaged_pickle(self, tmp_path, content):
        (tmp_path / "head.pth").write_bytes(content)
        assert "head.pth" in self.refused(tmp_path / "head.pth")

    def test_a_cut_off_pickle(self, tmp_path, small_head):
        (tmp_path / "head.pth").write_bytes(small_head.read_bytes()[:-50])
        assert "head.pth" in self.refused(tmp_path / "head.pth")

    def test_damaged_safetensors(self, tmp_path):
        (tmp_path / "head.safetensors").write_bytes(LAION.read_bytes()[:-1])
        assert "cannot be read as a file of tensors" in self.refused(tmp_path / "head.safetensors")

    @pytest.mark.parametrize("content", [[1, 2], {"layers.0.weight": 1}, torch.zeros(3)])
    def test_a_file_of_something_else(self, tmp_path, content):
        torch.save(content, tmp_path / "head.pth")
        assert "does not hold tensors by name" in self.refused(tmp_path / "head.pth")

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"layers.7.weight": None}, "not layers.I.weight and layers.I.bias"),
            ({"scale": torch.ones(1)}, "holds layers.0.bias"),
            ({"layers.7.weight": torch.zeros(2, 16), "layers.7.bias": torch.zeros(2)}, "do not follow on one another"),
            ({"layers.4.weight": torch.zeros(64, 64)}, "do not follow on one another"),
            ({f"layers.{i}.{part}": None for i in (0, 2, 4, 6, 7) for part in ("weight", "bias")}, "holds nothing"),
        ],
    )
    def test_another_network(self, tmp_path, change, complaint):
        tensors = {**load_file(LAION), **change}
        save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / "head.safetensors")
        assert complaint in self.refused(tmp_path / "head.safetensors")

    @pytest.mark.parametrize("places", [(0, 3, 6, 9, 11), (0, 2, 4, 6, 8), (0, 1, 2, 3, 4), (0, 2, 4, 7)])
    def test_a_head_with_something_between_its_layers(self, tmp_path, places):
        """The published ava+logos-l14-reluMSE.pth has linear layers at 0, 3, 6, 9 and 11, and ReLUs between them."""
        widths = [*[768, 1024, 128, 64, 16][: len(places)], 1]
        tensors = {}
        for place, before, after in zip(places, widths, widths[1:], strict=False):
            tensors |= {
                f"layers.{place}.weight": torch.zeros(after, before),
                f"layers.{place}.bias": torch.zeros(after),
            }
        torch.save(tensors, tmp_path / "ava+logos-l14-reluMSE.pth")
        complaint = self.refused(tmp_path / "ava+logos-l14-reluMSE.pth")
        assert f"at {', '.join(map(str, places))}, not at 0, 2, 4, 6, 7" in complaint
        assert "sac+logos+ava1-l14-linearMSE.pth" in complaint

    def test_a_missing_hub(self, monkeypatch):
        cut_off_hub(monkeypatch)
        message = refusal(RewardError, "aesthetic")
        assert "hf download trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth --local-dir DIR` (3.7 MB)" in message
        assert "--set reward_settings.aesthetic.head=DIR/aesthetic-model.pth" in message

    def test_a_missing_hub_with_the_head_here(self, monkeypatch, small_head):
        cut_off_hub(monkeypatch)
        message = refusal(RewardError, "aesthetic", head=str(small_head))
        assert "--set reward_settings.aesthetic.model=DIR" in message

    def test_obstacles(self, monkeypatch, clip, small_head):
        cut_off_hub(monkeypatch)
        assert obstacle("aesthetic", model=str(clip), head=str(small_head)) is None
        assert "aesthetic-model.pth is not here" in obstacle("aesthetic", model=str(clip))
        assert "model 'openai/clip-vit-large-patch14' is not here" in obstacle("aesthetic")

    def test_a_path_that_is_not_there(self, tmp_path):
        assert "there is no file" in self.refused(tmp_path / "none.pth")

    def test_a_folder(self, tmp_path):
        assert "is a folder; name the file in it" in refusal(ConfigError, "aesthetic", head=str(tmp_path))

    @pytest.mark.parametrize("head", [7, ""])
    def test_a_head_that_is_no_text(self, head):
        assert "must be a file or OWNER/REPOSITORY/FILE" in refusal(ConfigError, "aesthetic", head=head)
