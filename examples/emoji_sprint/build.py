"""The whole recipe: `python -m examples.emoji_sprint.build`. A stage whose output is in the work folder is skipped.

                                    ┌▶ decoder ─▶ evaluation classifier ─────┐
pictures ─▶ autoencoder ─▶ latents ─┼▶ teacher ─▶ trajectories ─▶ student ───┴▶ folders ─▶ evaluation ─▶ cards
            text encoder ─▶ captions ┘

Tokenizer, text encoder and autoencoder are those of the embedded pipeline, unless with `--from-nothing`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import Gemma2Model, GemmaTokenizer

from examples.emoji_lcm.classifiers import (
    jpeg,
    new_evaluation_classifier,
    save_classifier,
    through_latents,
    train_classifier,
)
from examples.emoji_lcm.data import WHITE_SHARE, Drawing, Pictures, Placement, load_drawings, make_pictures
from examples.emoji_lcm.paths import copy_folder, replace_folder
from examples.emoji_lcm.pipelines import edit_json
from examples.emoji_lcm.subjects import ALL_STYLES, ANIMALS, GENERATOR_STYLES
from examples.emoji_sprint import card, evaluate, paths
from examples.emoji_sprint.autoencoder import (
    SIZE,
    Shape,
    decode,
    encode,
    encode_pictures,
    load_autoencoder,
    measure,
    train_autoencoder,
    train_decoder,
)
from examples.emoji_sprint.pipelines import new_student_pipeline, new_teacher_pipeline, save_pipeline
from examples.emoji_sprint.student import Trajectories, distil, draw_trajectories
from examples.emoji_sprint.teacher import train_teacher
from examples.emoji_sprint.text import (
    Captions,
    embed_captions,
    load_text_encoder,
    new_tokenizer,
    train_text_encoder,
)
from examples.emoji_sprint.training import Loop

DRAWING_SIZE = 240
"""Pixels of a drawing before it is laid on a picture; an icon is drawn with more."""
PLACEMENT = Placement(smallest=0.75, largest=0.9, sizes=2, reach=0, mirrored=False)
"""Few: a place of the latents is 16×16 pixels, so a drawing has others at every pixel that it is moved by, and the
teacher would have to learn them all."""


@dataclass(frozen=True)
class Training:
    """How long a stage is trained, and how."""

    steps: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class Settings:
    """Of all stages; the defaults are those of the embedded models."""

    pictures_per_subject: int = 400
    shape: Shape = field(default_factory=Shape)
    width: int = 256
    depth: int = 8
    autoencoder: Training = Training(12_000, 16, 2e-3)
    decoder: Training = Training(4000, 16, 1e-3)
    text_encoder: Training = Training(1000, 64, 3e-3)
    teacher: Training = Training(8000, 64, 1e-3)
    trajectories: int = 20_000
    student: Training = Training(4500, 64, 1e-3)
    classifier: Training = Training(1500, 64, 2e-3)


@dataclass(frozen=True)
class Build:
    """A work folder and a device; one method a stage, each returning at once where its output exists."""

    work: Path
    device: torch.device
    finished: Path | None = paths.EMBEDDED
    settings: Settings = field(default_factory=Settings)
    checkpoint_seconds: float = 120.0

    def log(self, line: str) -> None:
        """Print a line and keep it in log.txt."""
        with (self.work / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def _loop(self, name: str, training: Training) -> Loop:
        return Loop(name, training.steps, self.work, self.log, self.checkpoint_seconds)

    def _take(self, part: str, folder: Path) -> bool:
        """Copy a part of the finished pipeline as the output of a stage, and return whether there is one."""
        if self.finished is None:
            return False
        copy_folder(self.finished / part, folder)
        self.log(f"{folder.name}: {part} of {self.finished.name}")
        return True

    def pictures(self) -> Pictures:
        """Draw the training pictures, and fresh ones to measure with: of all pairs, and on white."""
        count = self.settings.pictures_per_subject
        drawings: list[Drawing] = []
        for name, per_subject, seed, held_out_pairs, white_share in (
            ("fresh", 8, 99, True, WHITE_SHARE),
            ("real", 24, 7_001, True, 1.0),
            ("pictures", count, 1, False, WHITE_SHARE),
        ):
            path = self.work / f"{name}.safetensors"
            if not path.exists():
                drawings = drawings or load_drawings(GENERATOR_STYLES, self.work / "npm", DRAWING_SIZE)
                make_pictures(
                    drawings,
                    per_subject,
                    seed,
                    held_out_pairs=held_out_pairs,
                    white_share=white_share,
                    size=SIZE,
                    placement=PLACEMENT,
                ).save(path)
        return Pictures.load(path)

    def autoencoder(self) -> AutoencoderDC:
        """Train the autoencoder."""
        folder = self.work / "autoencoder"
        if not folder.exists() and not self._take("vae", folder):
            how = self.settings.autoencoder
            model = train_autoencoder(
                self.pictures(),
                self.settings.shape,
                self._loop("autoencoder", how),
                batch=how.batch,
                learning_rate=how.learning_rate,
                seed=0,
                device=self.device,
            )
            self._save_autoencoder(model, folder)
        return load_autoencoder(folder).to(self.device)

    def latents(self) -> dict[str, torch.Tensor]:
        """Latents float16 [N, C, h, w], subject and colour [N]."""
        path = self.work / "latents.safetensors"
        if not path.exists():
            pictures = self.pictures()
            latents = encode_pictures(self.autoencoder(), pictures)
            save_file({"latents": latents, "subject": pictures.subject, "colour": pictures.colour}, path)
        return load_file(path)

    def decoder(self) -> AutoencoderDC:
        """Train the decoder further, now that the latents are fixed; return the autoencoder with it."""
        folder = self.work / "decoder"
        if not folder.exists() and not self._take("vae", folder):
            how = self.settings.decoder
            model = train_decoder(
                self.autoencoder(),
                self.latents()["latents"],
                self.pictures(),
                self._loop("decoder", how),
                batch=how.batch,
                learning_rate=how.learning_rate,
                seed=0,
                device=self.device,
            )
            self._save_autoencoder(model, folder)
        return load_autoencoder(folder).to(self.device)

    def _save_autoencoder(self, model: AutoencoderDC, folder: Path) -> None:
        fresh = Pictures.load(self.work / "fresh.safetensors")
        self.log(f"{folder.name} on fresh pictures {measure(model, fresh)}")
        replace_folder(folder, lambda new: model.half().save_pretrained(new))
        edit_json(folder / "config.json", _name_or_path=None)

    def tokenizer(self) -> GemmaTokenizer:
        """Train the tokenizer, once: ties between merges fall differently from one training to the next."""
        folder = self.work / "tokenizer"
        if not folder.exists() and not self._take(folder.name, folder):
            replace_folder(folder, new_tokenizer().save_pretrained)
        return GemmaTokenizer.from_pretrained(folder)

    def text_encoder(self) -> Gemma2Model:
        """Train the text encoder."""
        folder = self.work / "text_encoder"
        if not folder.exists() and not self._take(folder.name, folder):
            how = self.settings.text_encoder
            model = train_text_encoder(
                self.tokenizer(),
                self._loop("text_encoder", how),
                batch=how.batch,
                learning_rate=how.learning_rate,
                seed=0,
                device=self.device,
            )
            replace_folder(folder, lambda fresh: model.half().save_pretrained(fresh))
        return load_text_encoder(folder).to(self.device)

    def captions(self) -> Captions:
        """Encode every caption once."""
        path = self.work / "captions.safetensors"
        if not path.exists():
            embed_captions(self.tokenizer(), self.text_encoder()).save(path)
        return Captions.load(path)

    def teacher(self) -> SanaTransformer2DModel:
        """Train the teacher."""
        folder = self.work / "teacher"
        if not folder.exists():
            how = self.settings.teacher
            model = train_teacher(
                **self.latents(),
                captions=self.captions(),
                loop=self._loop("teacher", how),
                width=self.settings.width,
                depth=self.settings.depth,
                batch=how.batch,
                learning_rate=how.learning_rate,
                seed=0,
                device=self.device,
            )
            replace_folder(folder, lambda fresh: model.save_pretrained(fresh))
        return SanaTransformer2DModel.from_pretrained(folder).to(self.device)

    def trajectories(self) -> Trajectories:
        """Draw trajectories of the guided teacher from noise to latents."""
        latents = self.latents()
        return draw_trajectories(
            self.teacher(),
            latents["subject"],
            latents["colour"],
            self.captions(),
            self.work / "trajectories",
            count=self.settings.trajectories,
            seed=0,
            device=self.device,
        )

    def student(self) -> SanaTransformer2DModel:
        """Distil the student."""
        folder = self.work / "student"
        if not folder.exists():
            how = self.settings.student
            model = distil(
                self.teacher(),
                self.trajectories(),
                self.captions(),
                self._loop("student", how),
                batch=how.batch,
                learning_rate=how.learning_rate,
                seed=0,
                device=self.device,
            )
            replace_folder(folder, lambda fresh: model.save_pretrained(fresh))
        return SanaTransformer2DModel.from_pretrained(folder).to(self.device)

    def classifier(self) -> None:
        """Train the evaluation classifier, of all five styles."""
        folder = self.work / "classifier"
        if folder.exists():
            return
        images, labels = self._classifier_data(seed=11)
        how = self.settings.classifier
        torch.manual_seed(11)
        model = train_classifier(
            new_evaluation_classifier(),
            images,
            labels,
            steps=how.steps,
            batch=how.batch,
            learning_rate=how.learning_rate,
            seed=11,
            device=self.device,
            log=self.log,
        )
        save_classifier(model.cpu(), folder, SIZE)

    def _classifier_data(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Fresh pictures: a half as drawn, a quarter through the autoencoder, a quarter through JPEG."""
        drawings = load_drawings(ALL_STYLES, self.work / "npm", DRAWING_SIZE)
        drawings = [drawing for drawing in drawings if drawing.subject < len(ANIMALS)]
        made = make_pictures(drawings, 240, seed, held_out_pairs=True, size=SIZE)
        kind = torch.randint(4, (len(made),), generator=torch.Generator().manual_seed(seed))
        images, vae = made.images, self.decoder()
        rebuilt, pressed = kind == 1, kind == 3
        images[rebuilt] = through_latents(lambda x: encode(vae, x), lambda x: decode(vae, x), images[rebuilt], seed)
        images[pressed] = jpeg(images[pressed], np.random.default_rng(seed))
        return images, made.subject

    def folders(self) -> None:
        """Write the two pipelines."""
        tokenizer = self.tokenizer()
        # Saving turns the parts to float16, so each pipeline gets its own.
        for name, transformer, put_together in (
            (evaluate.TEACHER, self.teacher(), new_teacher_pipeline),
            (evaluate.STUDENT, self.student(), new_student_pipeline),
        ):
            pipe = put_together(self.decoder(), self.text_encoder(), tokenizer, transformer)
            save_pipeline(pipe, self.work / name)

    def evaluation(self) -> None:
        """Measure the two pipelines."""
        if not (self.work / "evaluation.json").exists():
            evaluate.write(self.work, evaluate.evaluate(self.work, self.device))

    def cards(self) -> None:
        """Write the README of the two pipelines."""
        card.write_cards(self.work)

    def install(self) -> None:
        """Put what was made in its places in the repository."""
        for name, place in (
            (evaluate.STUDENT, paths.EMBEDDED),
            (evaluate.TEACHER, paths.EMBEDDED.with_name(evaluate.TEACHER)),
            ("classifier", paths.RECIPE / "classifier"),
        ):
            copy_folder(self.work / name, place)
        for file in (self.work / "evaluation.json", *self.work.glob("*.png")):
            shutil.copyfile(file, paths.RECIPE / file.name)

    def run(self, stages: Sequence[str]) -> None:
        """Do stages by name, and log how long each took."""
        self.work.mkdir(parents=True, exist_ok=True)
        for name in stages:
            started = time.monotonic()
            getattr(self, name)()
            self.log(f"{name}: {time.monotonic() - started:.0f} s")


STAGES = (
    "pictures",
    "tokenizer",
    "text_encoder",
    "captions",
    "autoencoder",
    "latents",
    "teacher",
    "trajectories",
    "student",
    "decoder",
    "classifier",
    "folders",
    "evaluation",
    "cards",
)


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=paths.WORK, help="folder for downloads and intermediate results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--from-nothing", action="store_true", help="train what is taken from the pipeline too")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to do")
    parser.add_argument("--install", action="store_true", help="at the end, replace what the repository holds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    finished = None if arguments.from_nothing else paths.EMBEDDED
    build = Build(arguments.work, torch.device(arguments.device), finished)
    build.run(STAGES[: STAGES.index(arguments.until) + 1])
    if arguments.install:
        build.install()


if __name__ == "__main__":
    main()
