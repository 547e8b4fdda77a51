import builtins
import functools
import importlib.util
import shutil

import pytest
import small_language_models
import torch

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.networks import bertscore
from rlcm_cli.rewards.networks.bertscore import SCORER, RecallScorer, digest_scorer, find_scorer_obstacle

pytest.importorskip("bert_score")

CPU = torch.device("cpu")
REFERENCES = ["The image contains a cat", "The image contains a dog riding a bike", "The image contains cats"] * 2
CANDIDATES = ["a cat on blue", "a dog", "the image contains cats", "blue", "and and and a dog is riding the bike", "a"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small_language_models.make_bert(folder / "bert")
    small_language_models.make_deberta(folder / "deberta")
    return folder


@pytest.fixture(params=["bert", "deberta"])
def folder(folders, request):
    return folders / request.param


@pytest.fixture
def copy(folders, tmp_path):
    """A model of one's own, to be damaged."""
    return shutil.copytree(folders / "bert", tmp_path / "bert")


@functools.cache
def load_by_hand(folder):
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def recall_by_hand(folder, layer, candidate, reference) -> float:
    """Equation 1 of arXiv 1904.09675, one pair of texts at a time; special tokens can be matched but do not count."""
    tokenizer, model = load_by_hand(folder)
    states = []
    for text in (candidate, reference):
        tokens = tokenizer(text, return_tensors="pt", add_special_tokens=True)
        with torch.no_grad():
            states.append(model(**tokens, output_hidden_states=True).hidden_states[layer][0])
    said, wanted = (torch.nn.functional.normalize(part, dim=-1) for part in states)
    # Padding has similarity 0 in bert-score, and every batch here is padded.
    best = (wanted @ said.T).max(dim=1).values.clamp(min=0)
    return best[1:-1].mean().item()


class TestRecall:
    @pytest.mark.parametrize("layer", [1, 3, 4])
    def test_it_is_the_one_computed_by_hand(self, folder, layer):
        recalls = RecallScorer(str(folder), layer, "r")(CANDIDATES, REFERENCES, CPU)
        expected = [recall_by_hand(folder, layer, *pair) for pair in zip(CANDIDATES, REFERENCES, strict=True)]
        assert recalls.dtype == torch.float32
        assert recalls.tolist() == pytest.approx(expected, abs=1e-5)
        assert len({round(value, 3) for value in expected}) > 4

    def test_it_is_what_the_package_gives(self, folders):
        from bert_score import BERTScorer

        from rlcm_cli.rewards.networks.loading import quiet_transformers

        folder = str(folders / "bert")
        with quiet_transformers():
            scorer = BERTScorer(folder, num_layers=3, device="cpu", use_fast_tokenizer=True)
        scorer._tokenizer.model_max_length = 30
        _, expected, _ = scorer.score(CANDIDATES, REFERENCES)
        torch.testing.assert_close(RecallScorer(folder, 3, "r")(CANDIDATES, REFERENCES, CPU), expected)

    def test_texts_reach_the_model_in_their_order(self, folders, monkeypatch):
        """By bert-score's own entrance they come in the order of their hashes, which no two processes share."""
        scorer = RecallScorer(str(folders / "bert"), 3, "r")
        seen = []
        forward = scorer._model.forward
        monkeypatch.setattr(
            scorer._model, "forward", lambda tokens, **rest: seen.append(tokens) or forward(tokens, **rest)
        )
        scorer(CANDIDATES, REFERENCES, CPU)
        decoded = [scorer._tokenizer.batch_decode(tokens, skip_special_tokens=True) for tokens in seen]
        assert decoded == [[text.lower() for text in REFERENCES], CANDIDATES]

    def test_the_same_text_has_a_recall_of_1(self, folder):
        assert RecallScorer(str(folder), 3, "r")(["a cat"], ["a cat"], CPU).item() == pytest.approx(1, abs=1e-5)

    def test_an_empty_answer_has_0_and_disturbs_no_other(self, folder, capfd):
        scorer = RecallScorer(str(folder), 3, "r")
        recalls = scorer(["a cat", "", " \n", "a dog"], REFERENCES[:4], CPU)
        rest = scorer(["a cat", "a dog"], [REFERENCES[0], REFERENCES[3]], CPU)
        assert recalls.tolist() == pytest.approx([rest[0].item(), 0, 0, rest[1].item()], abs=1e-6)
        assert scorer(["", ""], REFERENCES[:2], CPU).tolist() == [0, 0]
        assert capfd.readouterr() == ("", "")

    def test_a_tokenizer_without_a_longest_text(self, folder):
        """Longer answers than the model's are cut off."""
        scorer = RecallScorer(str(folder), 3, "r")
        assert torch.isfinite(scorer(["a cat " * 100], ["the image contains a cat"], CPU)).all()

    def test_more_than_a_batch(self, folders, monkeypatch):
        scorer = RecallScorer(str(folders / "bert"), 3, "r")
        whole = scorer(CANDIDATES, REFERENCES, CPU)
        monkeypatch.setattr(bertscore, "_BATCH", 2)
        torch.testing.assert_close(scorer(CANDIDATES, REFERENCES, CPU), whole, rtol=0, atol=1e-6)

    def test_loading_prints_nothing(self, folder, capfd):
        RecallScorer(str(folder), 3, "r")
        assert capfd.readouterr() == ("", "")


class TestScorersThatCannotBeUsed:
    def refusal(self, folder, kind=RewardError, layer=3) -> str:
        with pytest.raises(kind) as caught:
            RecallScorer(str(folder), layer, "r")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_missing_extra(self, folders, monkeypatch):
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "bert_score" else find_spec(name)
        )
        advice = "install it with `pip install 'rlcm[alignment]'`"
        assert advice in self.refusal(folders / "bert")
        assert advice in find_scorer_obstacle(str(folders / "bert"), "r")

    def test_an_unreachable_hub(self, monkeypatch):
        import huggingface_hub

        def snapshot_download(*args, **kwargs):
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        for message in (self.refusal(SCORER.source, layer=None), find_scorer_obstacle(SCORER.source, "r")):
            assert f"hf download {SCORER.source}" in message
            assert "reward_settings.r.scorer_model=DIR" in message

    def test_a_folder_is_no_obstacle(self, folders):
        assert find_scorer_obstacle(str(folders / "bert"), "r") is None

    def test_a_folder_needs_its_layer(self, folders):
        message = self.refusal(folders / "bert", ConfigError, layer=None)
        assert f"set reward_settings.r.scorer_layer (40 for a copy of {SCORER.source})" in message

    @pytest.mark.parametrize("layer", [0, -1, 2.0, True, "3"])
    def test_impossible_layers(self, folders, layer):
        assert "must be a whole number above 0" in self.refusal(folders / "bert", ConfigError, layer)

    def test_a_layer_that_the_model_has_not(self, folders):
        assert "scorer_layer 5 is above the 4 layers" in self.refusal(folders / "bert", ConfigError, 5)

    def test_an_empty_folder(self, tmp_path):
        assert "cannot be used as a language model of transformers" in self.refusal(tmp_path)

    def test_missing_weights(self, copy):
        from safetensors.torch import load_file, save_file

        weights = load_file(copy / "model.safetensors")
        del weights["encoder.layer.1.output.dense.weight"]
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        assert "the weights lack encoder.layer.1.output.dense.weight" in self.refusal(copy)

    def test_a_model_with_a_decoder(self, copy):
        from transformers import T5Config

        T5Config(d_model=8, num_layers=4).save_pretrained(copy)
        assert "it has a decoder" in self.refusal(copy)

    def test_a_hostile_pickle_in_the_place_of_weights(self, folders, tmp_path):
        folder = shutil.copytree(folders / "deberta", tmp_path / "deberta")
        left = tmp_path / "left"

        class Hostile:
            def __reduce__(self):
                return builtins.open, (str(left), "w")

        torch.save({"embeddings": Hostile()}, folder / "pytorch_model.bin")
        assert "cannot be used as a language model" in self.refusal(folder)
        assert not left.exists()

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
    def test_another_file_is_another_digest(self, copy, name):
        before = digest_scorer(str(copy), "r")
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        assert digest_scorer(str(copy), "r") != before
