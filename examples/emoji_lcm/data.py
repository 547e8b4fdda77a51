"""Emoji sets → drawings → augmented square pictures, of 64×64 unless told otherwise.

    npm pack ─▶ icons.json ─▶ drawings (RGBA, trimmed to the drawn part) ─▶ pictures.safetensors

A picture is a drawing, perhaps mirrored, slightly turned in hue, scaled, shifted, on a plain background.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.emoji_lcm.subjects import COLOURS, ICONS, SUBJECTS, Style, is_held_out

SIZE = 64
DRAWING_SIZE = 160
RASTER = 1.6
"""Pixels that an icon is drawn with before it is trimmed, for each one of a drawing."""
WHITE_SHARE = 0.4


@dataclass(frozen=True)
class Placement:
    """How a drawing lies on the canvas.

    Its side is a share of the canvas from `smallest` to `largest`: any, or one of `sizes` evenly spaced ones. It is
    moved from the middle by up to `reach` of the canvas each way, and every other one is mirrored, or none.
    """

    smallest: float = 0.6
    largest: float = 1.0
    sizes: int | None = None
    reach: float = 5 / 64
    mirrored: bool = True

    def share(self, rng: np.random.Generator) -> float:
        """Choose the side of a drawing."""
        if self.sizes is None:
            return rng.uniform(self.smallest, self.largest)
        return float(rng.choice(np.linspace(self.smallest, self.largest, self.sizes)))


ANYWHERE = Placement()


@dataclass(frozen=True)
class Drawing:
    """One icon of one style; `image` is RGBa (premultiplied), square, touching two sides."""

    subject: int
    style: str
    icon: str
    image: Image.Image


@dataclass(frozen=True)
class Pictures:
    """Augmented pictures: images uint8 [N, size, size, 3]; subject, drawing, colour int64 [N]."""

    images: torch.Tensor
    subject: torch.Tensor
    drawing: torch.Tensor
    colour: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        save_file(dict(vars(self)), path)

    @staticmethod
    def load(path: Path) -> Pictures:
        """Read what `save` wrote."""
        return Pictures(**load_file(path))


def download(style: Style, folder: Path) -> Path:
    """Return the path of the set's icons.json, fetched with `npm pack` on the first call."""
    target = folder / f"{style.name}-{style.version}.json"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", f"{style.package}@{style.version}", "--silent"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            member = archive.extractfile("package/icons.json")
            if member is None:
                raise FileNotFoundError(f"{style.package}@{style.version} holds no icons.json")
            target.write_bytes(member.read())
    return target


def trim(picture: Image.Image, size: int = DRAWING_SIZE) -> Image.Image:
    """Centre the drawn part of an RGBA picture on a square of `size`, premultiplied."""
    box = picture.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    cut = picture.crop(box)
    side = max(cut.size)
    square = Image.new("RGBA", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS)


def load_drawings(styles: Sequence[Style], folder: Path, size: int = DRAWING_SIZE) -> list[Drawing]:
    """Every icon of every subject in the given sets, `size` pixels a side; a set may lack some."""
    # Needed for this alone, and not among what rlcm needs.
    import resvg_py

    raster = round(size * RASTER)
    drawings = []
    for style in styles:
        sheet = json.loads(download(style, folder).read_text(encoding="utf-8"))
        for index, subject in enumerate(SUBJECTS):
            for name in ICONS.get(subject, (subject,)):
                icon = sheet["icons"].get(name) or sheet["icons"].get(sheet["aliases"].get(name, {}).get("parent"))
                if icon is None:
                    continue
                width = icon.get("width", sheet["width"])
                height = icon.get("height", sheet["height"])
                svg = (
                    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
                )
                png = resvg_py.svg_to_bytes(svg_string=svg, width=raster, height=raster)
                picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
                drawings.append(Drawing(index, style.name, name, trim(picture, size)))
    return drawings


def _hue_rotation(angle: float) -> NDArray[np.float32]:
    """Rotation of RGB about the grey axis (Rodrigues' formula with axis (1,1,1)/√3), [3, 3]."""
    cos, sin = math.cos(angle), math.sin(angle)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return (cos * np.eye(3) + sin * cross + (1 - cos) / 3).astype(np.float32)


def draw(
    drawing: Drawing, colour: str, rng: np.random.Generator, size: int = SIZE, placement: Placement = ANYWHERE
) -> NDArray[np.uint8]:
    """One augmented picture, uint8 [size, size, 3]."""
    side = round((size - 2) * placement.share(rng))
    small = drawing.image.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    if placement.mirrored and rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rgba = np.asarray(small, dtype=np.float32)
    ink = rgba[..., :3] @ _hue_rotation(rng.normal(0, 0.08)).T
    alpha = rgba[..., 3:] / 255
    ground = np.array(COLOURS[colour], dtype=np.float32)
    if colour != "white":
        ground = ground + rng.uniform(-5, 5, 3).astype(np.float32)
    canvas = np.broadcast_to(ground, (size, size, 3)).copy()
    margin = (size - side) // 2
    reach = min(margin, int(size * placement.reach))
    left, top = (margin + int(rng.integers(-reach, reach + 1)) for _ in range(2))
    part = canvas[top : top + side, left : left + side]
    part[:] = ink + part * (1 - alpha)
    return canvas.clip(0, 255).round().astype(np.uint8)


def make_pictures(
    drawings: Sequence[Drawing],
    per_subject: int,
    seed: int,
    *,
    held_out_pairs: bool,
    white_share: float = WHITE_SHARE,
    size: int = SIZE,
    placement: Placement = ANYWHERE,
) -> Pictures:
    """`per_subject` pictures of every subject that has a drawing, its drawings taken in turn.

    `held_out_pairs` False leaves the pairs of `is_held_out` away.
    """
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    images, subjects, chosen, colours = [], [], [], []
    for subject in range(len(SUBJECTS)):
        own = [i for i, d in enumerate(drawings) if d.subject == subject]
        allowed = [c for c in range(1, len(names)) if held_out_pairs or not is_held_out(subject, c)]
        for k in range(per_subject if own else 0):
            colour = 0 if rng.random() < white_share else int(rng.choice(allowed))
            which = own[k % len(own)]
            images.append(draw(drawings[which], names[colour], rng, size, placement))
            subjects.append(subject)
            chosen.append(which)
            colours.append(colour)
    return Pictures(
        torch.from_numpy(np.stack(images)),
        torch.tensor(subjects),
        torch.tensor(chosen),
        torch.tensor(colours),
    )


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] in −1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float [N, 3, H, W] in −1..1 → uint8 [N, H, W, 3]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
