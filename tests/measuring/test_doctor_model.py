"""What `rlcm doctor --model` says of a model: from its configurations only, and the same as once it is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import rlcm, succeed
from configurations import write_configurations
from fake_hub import files_of, reached
from huggingface_hub import constants
from model_helpers import edit_json, load_tiny
from pydantic import TypeAdapter
from tiny_pipelines import BUILDERS, SIZES, build_sd

from rlcm_cli.measuring import doctor
from rlcm_cli.measuring.doctor import Finding
from rlcm_cli.measuring.doctor import model as doctor_model
from rlcm_cli.measuring.footprint import Activations, Arithmetic, Footprint, WeightCounts, weigh
from rlcm_cli.models.folders import find_pipeline
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.outlines import outline_model
from rlcm_cli.models.parts import read_parts
from rlcm_cli.models.text_encoders import encoders_of

TOPICS = ["model", "sampling", "files", "lora", "memory to draw", "memory to train"]
FINE = Finding("python", "ok", "3.11")
CASES = [
    pytest.param(kind, name, id=f"{kind} {name}", marks=[pytest.mark.slow] * bool(number))
    for kind, builders in BUILDERS.items()
    for number, name in enumerate(builders)
]


@pytest.fixture(autouse=True)
def _machine_of_one_finding(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda runs: iter([FINE]))


def ask(capsys, *words):
    """The findings on a model, by their topics."""
    return {one["topic"]: one for one in list_findings(capsys, *words)}


def list_findings(capsys, *words):
    outcome = rlcm(capsys, "doctor", *words, "--json")
    machine, *found = outcome.json_line()["findings"]
    assert machine["topic"] == "python"
    assert outcome.status == int(any(one["status"] == "problem" for one in found))
    return found


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_outline_is_what_the_loaded_model_is(kind, name, tmp_path, capsys):
    folder = BUILDERS[kind][name](tmp_path / name)
    found = ask(capsys, "--model", folder, *(["--size", "24x16"] if kind in SIZES else []))
    assert [*found] == TOPICS
    assert "problem" not in {one["status"] for one in found.values()}

    real = load_tiny(folder, "bfloat16", SIZES.get(kind))
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    parts = read_parts(find_pipeline(str(folder), None, weights=False))
    where = find_pipeline(str(folder), None)
    outline = outline_model(where, parts, sampler=real.sampler.kind, image_size=SIZES.get(kind))
    assert (outline.latent_shape, outline.image_size) == (real.latent_shape, real.image_size)
    for part in (real.family.denoiser, "vae", *encoders_of(real.pipeline, real.family)):
        one, other = (getattr(model.pipeline, part) for model in (outline, real))
        assert weigh([one]) == weigh([other]), part
        assert {parameter.device.type for parameter in one.parameters()} == {"meta"}
    encoded, stand_in = (model.encode_prompts(["a cat"]) for model in (real, outline))
    assert encoded.keys() == stand_in.keys()
    for table in encoded:
        assert encoded[table].dtype == stand_in[table].dtype, table
        # A text may have another length.
        assert encoded[table].shape[2:] == stand_in[table].shape[2:], table
        if "pooled" in table:
            assert encoded[table].shape == stand_in[table].shape


def test_a_published_model_takes_what_the_documentation_says(tmp_path, capsys):
    file = Path(__file__).parents[2] / "docs" / "footprints.json"
    written = TypeAdapter(dict[str, Footprint]).validate_json(file.read_bytes())["sd15-lcm"]
    folder = write_configurations("sd15-lcm", tmp_path / "sd15-lcm")
    found = ask(capsys, "--model", folder)
    assert "UNet2DConditionModel of 860 M parameters" in found["model"]["found"]
    assert "sampler lcm, 4 calls an image, guidance 8.5, 512 × 512 pixels" in found["sampling"]["found"]
    drawing, training = (found[topic]["found"] for topic in ("memory to draw", "memory to train"))
    for told, size in (
        (drawing, written.drawing_bytes(bits=16, keeps_text=False)),
        (drawing, written.drawing_bytes(bits=16, keeps_text=True)),
        (training, written.training_bytes(bits=16, checkpointing=False, keeps_text=False)),
        (training, written.training_bytes(bits=16, checkpointing=True, keeps_text=False)),
    ):
        assert doctor_model.format_memory(size) in told
    assert doctor_model.format_count(written.adapter) in found["lora"]["found"]


def test_the_embedded_model_is_told_line_by_line(capsys):
    lines = succeed(capsys, "doctor", "--model", "emoji-lcm").out.splitlines()
    assert [line[8:26].strip() for line in lines] == ["python", *TOPICS]
    assert all(line.startswith("ok ") for line in lines)
    assert "4 calls an image, guidance 4, 64 × 64 pixels; source: its card" in lines[2]
    assert "13 MB in 12 files, part of rlcm" in lines[3]
    assert "56 modules (to_q, to_k, to_v, to_out.0); 208 k trained parameters at rank 16" in lines[4]


def test_too_little_memory_is_a_note_with_what_helps(tiny_lcm, monkeypatch, capsys):
    for room, advice in ((100, "smaller --size"), (10**12, "")):
        monkeypatch.setattr(doctor_model, "_measure_room", lambda device, room=room: (room, "this machine"))
        found = ask(capsys, "--model", tiny_lcm)
        for topic in ("memory to draw", "memory to train"):
            assert (found[topic]["status"], advice in found[topic]["advice"]) == ("note" if advice else "ok", True)
    weights = WeightCounts(total=100, linear=0, rows=0)
    activations = Activations(call=7, decode=9, transition=9000, checkpointed=4000)
    taken = Footprint((8, 8), weights, weights, weights, 0, activations, Arithmetic(1, 1, 1))
    told = doctor_model._tell_training(taken, 16, 5000, "cuda:0")
    assert (told.status, told.advice) == ("note", "use --set runtime.gradient_checkpointing=true")
    assert told.found.endswith("; cuda:0 has 5 kB")


def test_fewer_bits_are_recommended_where_they_fit_and_told_where_they_are_asked_for(tiny_lcm, capsys):
    weights, rest = WeightCounts(total=10_000, linear=10_000, rows=100), WeightCounts(total=0, linear=0, rows=0)
    activations = Activations(call=100, decode=90, transition=9000, checkpointed=4000)
    taken = Footprint((8, 8), rest, weights, rest, 0, activations, Arithmetic(1, 1, 1))
    fewer = weights.count_bytes(4)
    for room, advice in (
        (10 * fewer, ""),
        (20_000 + 4000, "use --set runtime.gradient_checkpointing=true"),
        (fewer + 4000, "use --quantize 4bit and --set runtime.gradient_checkpointing=true"),
        (fewer + 3999, doctor_model.LARGER),
    ):
        assert doctor_model._tell_training(taken, 16, room, "cuda:0").advice == advice
    for room, advice in ((20_100, ""), (fewer + 100, "use --quantize 4bit"), (fewer, doctor_model.LARGER)):
        assert doctor_model._tell_drawing(taken, 16, room, "cuda:0").advice == advice
    drawing = [
        ask(capsys, "--model", tiny_lcm, "--quantize", bits)["memory to draw"]["found"] for bits in ("8bit", "4bit")
    ]
    assert " in 8 bits, one image at a time" in drawing[0]
    assert " in 4 bits, one image at a time" in drawing[1]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with reached(monkeypatch, tmp_path / "cache") as served:
        yield served


def test_of_the_hub_only_configurations_are_downloaded(hub, tiny_lcm, capsys, monkeypatch):
    files = files_of(tiny_lcm)
    other = {"unet/diffusion_pytorch_model.fp16.safetensors": b"0" * 10**7, "unet/x.bin": b"0" * 10**7}
    hub.add("ann/lcm", files={**files, **other, "README.md": b"0" * 10**7})
    found = ask(capsys, "--model", "ann/lcm", "--revision", "main")
    assert [*found] == [topic.replace("files", "download") for topic in TOPICS]
    assert "ann/lcm, commit 000000000000: Stable Diffusion" in found["model"]["found"]
    fetched = {path.rpartition("/resolve/" + "0" * 40 + "/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {file for file in files if file.endswith("config.json") and "token" not in file} | {
        "model_index.json"
    }
    needed = [file for file in files if file != "README.md"]
    size = doctor_model.format_memory(sum(len(files[file]) for file in needed))
    here = doctor_model.format_memory(sum(len(files[file]) for file in fetched))
    told = f"{size} in {len(needed)} files, of which {here} are in the hub cache"
    assert found["download"]["found"] == told

    load_model("ann/lcm", revision=None, dtype="float32", device="cpu")
    assert ask(capsys, "--model", "ann/lcm")["download"]["found"].startswith("none: all ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = ask(capsys, "--model", "ann/lcm")["download"]
    assert (told["status"], told["found"]) == ("note", f"{size} are in the hub cache, and HF_HUB_OFFLINE is set")


def test_a_distilled_lora_is_looked_for_and_measured(hub, tmp_path, capsys):
    folder = build_sd(tmp_path / "sd")
    hub.add("ann/lora", files={"pytorch_lora_weights.safetensors": b"0" * 5000, "other.safetensors": b"0" * 7000})
    (tmp_path / "own.safetensors").write_bytes(b"0" * 3000)
    for place, size in (
        ("ann/lora", "5 kB"),
        ("ann/lora/other.safetensors", "7 kB"),
        (tmp_path / "own.safetensors", "3 kB"),
    ):
        found = ask(capsys, "--model", folder, "--set", f"model.distilled_lora={place}")
        assert "sampler lcm, 4 calls an image, guidance 1" in found["sampling"]["found"]
        assert found["distilled LoRA"]["found"] == f"{place}: {size}"
    assert not any("/resolve/" in path for path in hub.asked)
    for place, said in (
        ("ann/none", "the hub has no repository ann/none"),
        ("ann/lora/gone.safetensors", "ann/lora has no file gone.safetensors"),
        (tmp_path / "gone.safetensors", "is not here"),
    ):
        *_, last = list_findings(capsys, "--model", folder, "--set", f"model.distilled_lora={place}")
        assert (last["status"], said in last["found"]) == ("problem", True), last


def test_each_mistake_is_one_problem_that_says_what_to_do(hub, tiny_lcm, tmp_path, capsys):
    hub.add("ann/gated")
    hub.faults["ann/gated"] = (403, "GatedRepo")
    hub.add("ann/lora", files={"my_lora.safetensors": b"0"})
    folders = {}
    for name, file, changes in (
        ("unknown", "model_index.json", {"unet": ["diffusers", "OtherModel"], "_class_name": "OtherPipeline"}),
        ("newer", "model_index.json", {"vae": ["diffusers", "AutoencoderOfTomorrow"], "_diffusers_version": "9.0"}),
        ("misfit", "vae/config.json", {"latent_channels": 3}),
    ):
        folders[name] = shutil.copytree(tiny_lcm, tmp_path / name)
        edit_json(folders[name] / file, **changes)
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"0")
    for words, said in (
        (["--model", "ann/none"], "the hub has no repository ann/none"),
        (["--model", "ann/gated"], "ann/gated is gated; accept its terms"),
        (["--model", "ann/lora"], "holds a LoRA, not a pipeline"),
        (["--model", tmp_path / "nowhere"], "is not a folder here"),
        (["--model", single], "model.safetensors"),
        (["--model", folders["unknown"]], "is a OtherPipeline, which is of no family that is known here"),
        (["--model", folders["newer"]], "was saved by diffusers 9.0: install a newer diffusers"),
        (["--model", folders["misfit"]], "its components do not fit each other"),
        (["--model", tiny_lcm, "--size", "17"], "17"),
        (["--model", tiny_lcm, "--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["--model", tiny_lcm, "--set", "model.distilled_lora=nowhere.safetensors"], "nowhere.safetensors"),
    ):
        *_, last = list_findings(capsys, *words)
        assert (last["status"], said in last["found"]) == ("problem", True), (words, last)
        assert "\n" not in last["found"]
        shown = rlcm(capsys, "doctor", *words)
        assert (shown.status, shown.err) == (1, "")


def test_mistakes_of_the_command_line_are_told_before_anything_else(capsys):
    for words, said in (
        (["--size", "512"], "--size is about a model; name one by --model NAME"),
        (["--model", "emoji-lcm", "--dtype", "int3"], "int3"),
        (["--model", "emoji-lcm", "--steps", "0"], "steps"),
        (["--model", "emoji-lcm", "--set", "model.nme=3"], "model.nme"),
    ):
        outcome = rlcm(capsys, "doctor", *words)
        assert (outcome.status, outcome.out) == (2, "")
        assert said in outcome.err


def test_on_a_machine_that_is_broken_no_model_is_looked_at(capsys, monkeypatch):
    broken = Finding("torch", "problem", "cannot be imported", "install it again")
    monkeypatch.setattr(doctor, "examine", lambda runs: iter([FINE, broken]))
    found = ask(capsys, "--model", "emoji-lcm")
    assert [*found] == ["torch", "model"]
    assert found["model"]["found"].startswith("not looked at")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (5_411_000, "5.41 M"), (11_900_000_000, "11.9 B")]
)
def test_parameters_are_told_with_three_digits(number, text):
    assert doctor_model.format_count(number) == text
