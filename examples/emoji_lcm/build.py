"""The whole recipe: `python -m examples.emoji_lcm.build`. A stage whose output exists is skipped.

pictures ─▶ autoencoder ─▶ latents ─▶ teacher ─▶ student ─▶ folders
    └──────▶ judge, evaluation classifier                      └─▶ evaluation ─▶ cards
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from examples.emoji_lcm import card, evaluate, paths
from examples.emoji_lcm.autoencoder import encode_pictures, load_autoencoder, psnr, train_autoencoder
from examples.emoji_lcm.classifiers import (
    jpeg,
    new_evaluation_classifier,
    new_judge,
    reconstructions,
    save_classifier,
    train_classifier,
)
from examples.emoji_lcm.data import Pictures, load_drawings, make_pictures
from examples.emoji_lcm.distill import distil
from examples.emoji_lcm.pipelines import save_lcm, save_teacher
from examples.emoji_lcm.subjects import ALL_STYLES, ANIMALS, GENERATOR_STYLES, SUBJECTS, Style
from examples.emoji_lcm.teacher import Teacher, train_teacher
from examples.emoji_lcm.text import new_tokenizer

PICTURES_PER_SUBJECT = 640
TEACHER_STEPS = 7500
STUDENT_STEPS = 2600


@dataclass(frozen=True)
class Build:
    """A work folder and a device; one method a stage, each returning at once where its output exists."""

    work: Path
    device: torch.device

    def log(self, line: str) -> None:
        """Print a line and keep it in log.txt."""
        with (self.work / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def pictures(self) -> Pictures:
        """Draw the generator's training pictures."""
        path = self.work / "pictures.safetensors"
        if not path.exists():
            drawings = load_drawings(GENERATOR_STYLES, self.work / "npm")
            make_pictures(drawings, PICTURES_PER_SUBJECT, seed=1, held_out_pairs=False).save(path)
        return Pictures.load(path)

    def autoencoder(self) -> None:
        """Train the autoencoder."""
        folder = self.work / "autoencoder"
        if folder.exists():
            return
        model = train_autoencoder(self.pictures(), steps=4500, batch=32, seed=0, device=self.device, log=self.log)
        drawings = load_drawings(GENERATOR_STYLES, self.work / "npm")
        fresh = make_pictures(drawings, 8, seed=99, held_out_pairs=True)
        self.log(f"autoencoder PSNR on fresh pictures {psnr(model, fresh, self.device):.2f} dB")
        paths.replace_folder(folder, lambda fresh_folder: model.save_pretrained(fresh_folder))

    def latents(self) -> dict[str, torch.Tensor]:
        """Latents float16 [N, C, h, w], subject and colour [N]."""
        path = self.work / "latents.safetensors"
        if not path.exists():
            pictures = self.pictures()
            latents = encode_pictures(load_autoencoder(self.work / "autoencoder"), pictures, self.device)
            save_file({"latents": latents, "subject": pictures.subject, "colour": pictures.colour}, path)
        return load_file(path)

    def teacher(self) -> Teacher:
        """Train the diffusion teacher."""
        folder = self.work / "teacher"
        if not folder.exists():
            trained = train_teacher(
                **self.latents(),
                tokenizer=new_tokenizer(),
                steps=TEACHER_STEPS,
                batch=48,
                learning_rate=8e-4,
                seed=0,
                device=self.device,
                log=self.log,
                preview=lambda teacher: teacher.save(self.work / "teacher-preview"),
            )
            trained.save(folder)
        return Teacher.load(folder)

    def student(self) -> UNet2DConditionModel:
        """Distil the latent consistency model."""
        folder = self.work / "student"
        if not folder.exists():
            unet = distil(
                self.teacher(),
                **self.latents(),
                tokenizer=new_tokenizer(),
                steps=STUDENT_STEPS,
                batch=32,
                learning_rate=4e-4,
                seed=0,
                device=self.device,
                log=self.log,
            )
            paths.replace_folder(folder, lambda fresh: unet.save_pretrained(fresh))
        return UNet2DConditionModel.from_pretrained(folder)

    def classifiers(self) -> None:
        """Train and write the evaluation classifier and the judge."""
        vae = load_autoencoder(self.work / "autoencoder").to(self.device)
        for folder, styles, seed in ((paths.CLASSIFIER, ALL_STYLES, 11), (paths.JUDGE, GENERATOR_STYLES, 23)):
            if (folder / "model.safetensors").exists():
                continue
            images, labels = self._classifier_data(vae, styles, seed, animals_only=folder is paths.CLASSIFIER)
            if folder is paths.CLASSIFIER:
                model = train_classifier(
                    new_evaluation_classifier(),
                    images,
                    labels,
                    steps=2400,
                    batch=64,
                    learning_rate=2e-3,
                    seed=seed,
                    device=self.device,
                    log=self.log,
                )
            else:
                model = train_classifier(
                    new_judge(),
                    images,
                    labels,
                    steps=2400,
                    batch=64,
                    learning_rate=2e-3,
                    seed=seed,
                    device=self.device,
                    log=self.log,
                    smoothing=0.1,
                    other=len(SUBJECTS),
                )
            save_classifier(model.cpu(), folder)

    def _classifier_data(
        self, vae: AutoencoderTiny, styles: Sequence[Style], seed: int, *, animals_only: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fresh pictures: a half as drawn, a quarter through the autoencoder, a quarter through JPEG."""
        drawings = load_drawings(styles, self.work / "npm")
        drawings = [d for d in drawings if not animals_only or d.subject < len(ANIMALS)]
        made = make_pictures(drawings, 240, seed, held_out_pairs=True)
        rebuilt, pressed = torch.arange(len(made)) % 4 == 1, torch.arange(len(made)) % 4 == 3
        images = made.images.clone()
        images[rebuilt] = reconstructions(vae, images[rebuilt], seed)
        images[pressed] = jpeg(images[pressed], np.random.default_rng(seed))
        return images, made.subject

    def folders(self) -> None:
        """Write the two pipelines from the work folder."""
        vae, tokenizer, teacher = load_autoencoder(self.work / "autoencoder"), new_tokenizer(), self.teacher()
        save_lcm(paths.LCM, vae, teacher.text_encoder, tokenizer, self.student())
        save_teacher(
            paths.TEACHER,
            load_autoencoder(self.work / "autoencoder"),
            self.teacher().text_encoder,
            tokenizer,
            teacher.unet,
        )


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=paths.WORK, help="folder for downloads and intermediate results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    build = Build(arguments.work, torch.device(arguments.device))
    for stage in (
        build.pictures,
        build.autoencoder,
        build.latents,
        build.teacher,
        build.student,
        build.folders,
        build.classifiers,
    ):
        started = time.monotonic()
        stage()
        build.log(f"{stage.__name__}: {time.monotonic() - started:.0f} s")
    figures = evaluate.evaluate(arguments.work, build.device, evaluate.RECOMMENDED_GUIDANCE)
    evaluate.write(figures)
    card.write_cards()


if __name__ == "__main__":
    main()
