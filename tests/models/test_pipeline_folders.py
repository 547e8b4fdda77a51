"""Where a pipeline lies, and what its files may say."""

import json

import pytest
from fake_hub import reached

from rlcm_cli.errors import ModelError
from rlcm_cli.models.folders import INDEX, PipelineFolder, find_pipeline


def test_an_embedded_name_and_a_folder_are_found(tiny_lcm):
    assert find_pipeline("emoji-lcm", None).read_index()["_class_name"] == "LatentConsistencyModelPipeline"
    found = find_pipeline(str(tiny_lcm), None)
    assert (found.path, found.commit) == (tiny_lcm, None)
    assert found.find_variant("unet", "diffusers") is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "it needs model_index.json and a folder for each component"),
        ({"config.json": {}}, "is one component or another kind of model"),
        ({"adapter_config.json": {}}, "holds a LoRA, not a pipeline"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_refused_in_a_line(tmp_path, files, words):
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(ModelError, match=words) as caught:
        find_pipeline(str(tmp_path), None)
    assert "\n" not in str(caught.value)


def test_a_repository_of_loras_names_its_files(monkeypatch, tmp_path):
    loras = {f"few_{steps}step_lora.safetensors": b"0" for steps in (4, 2)}
    with reached(monkeypatch, tmp_path / "cache") as hub:
        hub.add("ann/few", files={**loras, "README.md": b"0"})
        with pytest.raises(ModelError) as caught:
            find_pipeline("ann/few", None)
    assert str(caught.value).startswith("ann/few: holds 2 LoRAs, not a pipeline; name the pipeline")
    assert "--set model.distilled_lora=ann/few/few_2step_lora.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_an_index_and_a_configuration_may_not_say(tmp_path):
    folder = PipelineFolder("mine", tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"unet": ["diffusers"]}))
    with pytest.raises(ModelError, match=r"says unet: .*which is not \[library, class\]"):
        folder.read_index()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    with pytest.raises(ModelError, match="the weights of its unet are quantised"):
        folder.read_config("unet")
