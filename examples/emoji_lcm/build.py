"""The whole recipe: `python -m examples.emoji_lcm.build`. A stage whose output is in the work folder is skipped.

pictures ─▶ autoencoder ─▶ latents ─▶ teacher ─▶ student ─▶ folders
    └──────▶ judge, evaluation classifier, emoji-clip          └─▶ evaluation ─▶ cards
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from examples.emoji_lcm import card, emoji_clip, evaluate, paths
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
from examples.emoji_lcm.emoji_clip import new_clip_tokenizer, save_clip, train_clip
from examples.emoji_lcm.emoji_clip_data import Bank, load_bank
from examples.emoji_lcm.pipelines import save_lcm, save_teacher
from examples.emoji_lcm.subjects import ALL_STYLES, ANIMALS, CLIP_STYLES, GENERATOR_STYLES, SUBJECTS, Style
from examples.emoji_lcm.teacher import Teacher, train_teacher
from examples.emoji_lcm.text import new_tokenizer

PICTURES_PER_SUBJECT = 640
TEACHER_STEPS = 7500
STUDENT_STEPS = 2400
CLASSIFIER_STEPS = 2000
CLIP_STEPS = 1600


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

    def tokenizer(self) -> CLIPTokenizer:
        """Train the tokenizer, once: ties between merges fall differently from one training to the next."""
        folder = self.work / "tokenizer"
        if not folder.exists():
            paths.replace_folder(folder, new_tokenizer().save_pretrained)
        return CLIPTokenizer.from_pretrained(folder)

    def teacher(self) -> Teacher:
        """Train the diffusion teacher."""
        folder = self.work / "teacher"
        if not folder.exists():
            train_teacher(
                **self.latents(),
                tokenizer=self.tokenizer(),
                steps=TEACHER_STEPS,
                batch=48,
                learning_rate=8e-4,
                seed=0,
                device=self.device,
                log=self.log,
            ).save(folder)
        return Teacher.load(folder)

    def student(self) -> UNet2DConditionModel:
        """Distil the latent consistency model."""
        folder = self.work / "student"
        if not folder.exists():
            unet = distil(
                self.teacher(),
                **self.latents(),
                tokenizer=self.tokenizer(),
                steps=STUDENT_STEPS,
                batch=32,
                learning_rate=4e-4,
                seed=0,
                device=self.device,
                log=self.log,
            )
            paths.replace_folder(folder, lambda fresh: unet.save_pretrained(fresh))
        return UNet2DConditionModel.from_pretrained(folder)

    def judge(self) -> None:
        """Train and write the judge."""
        if not (self.work / "judge").exists():
            images, labels = self._classifier_data(GENERATOR_STYLES, seed=23, animals_only=False)
            model = train_classifier(
                new_judge(),
                images,
                labels,
                steps=CLASSIFIER_STEPS,
                batch=64,
                learning_rate=2e-3,
                seed=23,
                device=self.device,
                log=self.log,
                smoothing=0.1,
                other=len(SUBJECTS),
            )
            save_classifier(model.cpu(), self.work / "judge")

    def classifier(self) -> None:
        """Train and write the evaluation classifier."""
        if not (self.work / "classifier").exists():
            images, labels = self._classifier_data(ALL_STYLES, seed=11, animals_only=True)
            model = train_classifier(
                new_evaluation_classifier(),
                images,
                labels,
                steps=CLASSIFIER_STEPS,
                batch=64,
                learning_rate=2e-3,
                seed=11,
                device=self.device,
                log=self.log,
            )
            save_classifier(model.cpu(), self.work / "classifier")

    def _classifier_data(
        self, styles: Sequence[Style], *, seed: int, animals_only: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fresh pictures: a half as drawn, a quarter through the autoencoder, a quarter through JPEG."""
        drawings = load_drawings(styles, self.work / "npm")
        drawings = [d for d in drawings if not animals_only or d.subject < len(ANIMALS)]
        made = make_pictures(drawings, 240, seed, held_out_pairs=True)
        kind = torch.randint(4, (len(made),), generator=torch.Generator().manual_seed(seed))
        rebuilt, pressed = kind == 1, kind == 3
        images = made.images.clone()
        vae = load_autoencoder(self.work / "autoencoder").to(self.device)
        images[rebuilt] = reconstructions(vae, images[rebuilt], seed)
        images[pressed] = jpeg(images[pressed], np.random.default_rng(seed))
        return images, made.subject

    def emoji_clip(self) -> None:
        """Train and write emoji-clip, on the CPU."""
        if (self.work / "emoji_clip").exists():
            return
        bank_path = self.work / "emoji_clip_bank.safetensors"
        if not bank_path.exists():
            load_bank(CLIP_STYLES, GENERATOR_STYLES, self.work / "npm").save(bank_path)
        bank = Bank.load(bank_path)
        tokenizer = new_clip_tokenizer(bank.words)
        model = train_clip(
            bank,
            self._finished_pictures(31),
            tokenizer,
            steps=CLIP_STEPS,
            batch=48,
            learning_rate=5e-4,
            seed=0,
            log=self.log,
        )
        save_clip(model, tokenizer, self.work / "emoji_clip")

    def _finished_pictures(self, seed: int) -> Pictures:
        """Draw pictures without the pairs kept out: a half through the autoencoder, a quarter through JPEG."""
        made = make_pictures(load_drawings(GENERATOR_STYLES, self.work / "npm"), 120, seed, held_out_pairs=False)
        kind = torch.randint(4, (len(made),), generator=torch.Generator().manual_seed(seed))
        images = made.images.clone()
        vae = load_autoencoder(self.work / "autoencoder").to(self.device)
        images[kind < 2] = reconstructions(vae, images[kind < 2], seed)
        images[kind == 3] = jpeg(images[kind == 3], np.random.default_rng(seed))
        return replace(made, images=images)

    def folders(self) -> None:
        """Write the two pipelines, the two classifiers and emoji-clip from the work folder to their places."""
        tokenizer = self.tokenizer()
        # Saving turns the parts to float16, so each pipeline gets its own.
        for folder, unet, save in (
            (paths.LCM, self.student(), save_lcm),
            (paths.TEACHER, self.teacher().unet, save_teacher),
        ):
            vae, encoder = load_autoencoder(self.work / "autoencoder"), self.teacher().text_encoder
            save(folder, vae, encoder, tokenizer, unet)
        for name, place in (
            ("judge", paths.JUDGE),
            ("classifier", paths.CLASSIFIER),
            ("emoji_clip", paths.CLIP),
        ):
            paths.copy_folder(self.work / name, place)


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
        build.judge,
        build.classifier,
        build.emoji_clip,
        build.folders,
    ):
        started = time.monotonic()
        stage()
        build.log(f"{stage.__name__}: {time.monotonic() - started:.0f} s")
    evaluate.write(evaluate.evaluate(arguments.work, build.device, evaluate.RECOMMENDED_GUIDANCE))
    emoji_clip.write(emoji_clip.figures(paths.CLIP, arguments.work))
    card.write_cards()


if __name__ == "__main__":
    main()
