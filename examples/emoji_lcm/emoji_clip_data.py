"""Drawings for emoji-clip: every emoji name in eighteen styles, and the pictures made of them while it trains.

    npm pack ─▶ icons.json ─▶ Bank (premultiplied RGBA, 96×96) ─▶ Batch (pictures 64×64, word, background colour)

A word is a subject of `subjects.py` or any other emoji name without people, flags, letters and signs. A picture is a
drawing under a random affine and elastic map, its ink perhaps turned in hue, mixed, greyed or repainted, on a plain
or a textured background.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import torch
import torch.nn.functional as fn
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from examples.emoji_lcm.data import SIZE, download, trim
from examples.emoji_lcm.subjects import ANIMALS, COLOURS, GLYPH_STYLES, ICONS, SUBJECTS, Style, is_held_out

INK_SIZE = 96
UNKNOWN = -1
"""The colour of a background that has no name."""

_LEFT_OUT = re.compile(
    r"""(^|-)(man|men|mans|woman|women|womans|person|people|boy|boys|girl|girls|child|children|adult|adults|family
    |couple|kiss|baby|mx|mrs|prince|princess|king|queen|guard|detective|ninja|superhero|supervillain|mage|fairy|vampire
    |merman|mermaid|merperson|elf|genie|zombie|troll|worker|farmer|cook|mechanic|scientist|technologist|singer|artist
    |pilot|astronaut|firefighter|judge|teacher|student|police|officer|skin|haired|hand|hands|handshake|finger|fingers
    |fist|thumbs|palm|palms|index|gesture|salute|biceps|selfie|racing|skier|snowboarder|light|medium|dark|flag|flags
    |clock|oclock|thirty|keycap|button|letter|digit|regional|input|mahjong|japanese|sign|breast)(-|$)
    |^[0-9#*]|^u[0-9a-f]{4,}|^[a-z]$""",
    re.VERBOSE,
)
# What sets add to a name to tell one drawing of it from another.
_SUFFIX = re.compile(
    r"-?(face|faces|head|side|zodiac|alt|outline|outlined|filled|fill|solid|bold|duotone|thin|light|small|variant|line"
    r"|sharp|stroke|rounded|one|two|three|[0-9]+)$"
)
# Icons whose name says something else than it shows, or that a subject's icons would not match by name.
_RENAMED: dict[str, dict[str, str | None]] = {
    "*": {"mouse": None, "ram": "sheep", "ewe": "sheep", "chipmunk": "squirrel", "honeybee": "bee"},
    "fxemoji": {"mouse": "mouse", "mouseside": None, "spurtingwhale": "whale", "wolfface": "wolf", "catside": "cat"},
    "game-icons": {
        # A battering ram.
        "ram": None,
        "seated-mouse": "mouse",
        "sitting-dog": "dog",
        "sniffing-dog": "dog",
        "jumping-dog": "dog",
        "hollow-cat": "cat",
        "long-legged-spider": "spider",
        "angular-spider": "spider",
        "wolf-howl": "wolf",
        "direwolf": "wolf",
        "sperm-whale": "whale",
        "shark-jaws": "shark",
        "shark-bite": "shark",
        "canadian-goose": "goose",
        "plastic-duck": "duck",
        "sand-snake": "snake",
        "rattlesnake": "snake",
        "sea-turtle": "turtle",
        "scarab-beetle": "beetle",
        "flying-beetle": "beetle",
        "gecko": "lizard",
        "clownfish": "fish",
        "double-fish": "fish",
        "shiny-apple": "apple",
        "barn-owl": "owl",
    },
    # The country, roasts and drumsticks.
    "streamline-emojis": {"turkey": None},
    "icon-park": {"turkey": None, "chicken": None},
    "icon-park-solid": {"turkey": None, "chicken": None},
    "mingcute": {"chicken-fill": None, "chicken-line": None},
}


@dataclass(frozen=True)
class Bank:
    """Drawings: ink uint8 [D, 4, 96, 96] (premultiplied RGBA); word and style int64 [D] index `words` and `styles`.

    `words` begins with SUBJECTS. A glyph has no colours of its own.
    """

    ink: torch.Tensor
    word: torch.Tensor
    style: torch.Tensor
    words: tuple[str, ...]
    styles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ink)

    @property
    def glyph(self) -> torch.Tensor:
        """Bool [D]: drawings of a single colour."""
        glyphs = {style.name for style in GLYPH_STYLES}
        return torch.tensor([name in glyphs for name in self.styles])[self.style]

    def of(self, keep: torch.Tensor) -> Bank:
        """Return the drawings where bool [D] `keep` holds."""
        return Bank(self.ink[keep], self.word[keep], self.style[keep], self.words, self.styles)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        names = {"words": json.dumps(self.words), "styles": json.dumps(self.styles)}
        save_file({"ink": self.ink, "word": self.word, "style": self.style}, path, metadata=names)

    @staticmethod
    def load(path: Path) -> Bank:
        """Read what `save` wrote."""
        with safe_open(path, "pt") as file:
            names = file.metadata()
            tensors = [file.get_tensor(key) for key in ("ink", "word", "style")]
        return Bank(*tensors, tuple(json.loads(names["words"])), tuple(json.loads(names["styles"])))


def _bare(name: str) -> str:
    return name.replace("-", "")


def word_of(style: str, icon: str, known: dict[str, str]) -> str | None:
    """Return the word that an icon draws, None where it draws none; `known` maps names without dashes to words."""
    for table in (_RENAMED.get(style, {}), _RENAMED["*"]):
        if icon in table:
            return table[icon]
    if icon in known:
        return known[icon]
    if style in ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"):
        return known.get(_bare(icon))
    name = icon
    for _ in range(3):
        if _bare(name) in known and name != "mouse":
            return known[_bare(name)]
        name = _SUFFIX.sub("", name)
    return None


def known_words(sheets: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the words, SUBJECTS first, and the map from names without dashes to words, from emoji sets' sheets."""
    known = {_bare(icon): subject for subject in SUBJECTS for icon in (*ICONS.get(subject, ()), subject)}
    known |= {"bearface": "bear", "lionface": "lion", "foxface": "fox", "wolfface": "wolf", "frogface": "frog"}
    taken = {icon for icons in ICONS.values() for icon in icons} | set(SUBJECTS) | set(_RENAMED["*"])
    names = sorted({name for sheet in sheets for name in sheet["icons"] if not _LEFT_OUT.search(name)} - taken)
    words = {name: name.replace("-", " ") for name in names}
    known |= {_bare(name): word for name, word in words.items() if _bare(name) not in known}
    return (*SUBJECTS, *dict.fromkeys(known[_bare(n)] for n in names if known[_bare(n)] not in SUBJECTS)), known


def render(sheet: dict[str, Any], icon: dict[str, Any]) -> torch.Tensor | None:
    """Return an icon's ink uint8 [4, 96, 96], trimmed; None where it is empty."""
    width, height = icon.get("width", sheet.get("width", 16)), icon.get("height", sheet.get("height", 16))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=192, height=192)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if picture.getchannel("A").getextrema()[1] < 128:
        return None
    small = trim(picture).resize((INK_SIZE, INK_SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def load_bank(styles: Sequence[Style], naming: Sequence[Style], folder: Path) -> Bank:
    """Draw every icon of `styles` that has a word; the words are the names in the sets `naming`."""
    sheets = {s.name: json.loads(download(s, folder).read_text(encoding="utf-8")) for s in (*styles, *naming)}
    words, known = known_words([sheets[s.name] for s in naming])
    index = {word: i for i, word in enumerate(words)}
    ink, word_index, style_index = [], [], []
    for number, style in enumerate(styles):
        sheet = sheets[style.name]
        count: dict[str, int] = {}
        for name, icon in sheet["icons"].items():
            word = word_of(style.name, name, known)
            # A set of glyphs may have one thing ten times over.
            if word is None or count.get(word, 0) >= 4:
                continue
            drawn = render(sheet, icon)
            if drawn is not None:
                count[word] = count.get(word, 0) + 1
                ink.append(drawn)
                word_index.append(index[word])
                style_index.append(number)
    return Bank(
        torch.stack(ink), torch.tensor(word_index), torch.tensor(style_index), words, tuple(s.name for s in styles)
    )


def allowed_pairs(words: int) -> torch.Tensor:
    """Bool [words, colours]: False for the pairs that are kept out of training."""
    return torch.tensor([[not is_held_out(w, c) for c in range(len(COLOURS))] for w in range(words)])


@dataclass(frozen=True)
class Batch:
    """Pictures float32 [B, 3, 64, 64] in −1..1; drawing, word and colour int64 [B]; a colour may be UNKNOWN."""

    pictures: torch.Tensor
    drawing: torch.Tensor
    word: torch.Tensor
    colour: torch.Tensor


class Painter:
    """Draws batches from a bank: a word by its group's share, then one of its styles, then one of its drawings."""

    def __init__(self, bank: Bank, animals: float = 0.62, extras: float = 0.13) -> None:
        self.bank = bank
        rest = 1 - animals - extras
        self._weight = torch.zeros(len(bank))
        # The square root lets a word with many drawings take more room, but less than its count.
        per_style = torch.zeros(len(bank))
        for style in range(len(bank.styles)):
            own = bank.style == style
            counts = torch.bincount(bank.word[own], minlength=len(bank.words)).float()
            per_style[own] = counts[bank.word[own]].rsqrt()
        # A glyph says less than a coloured drawing.
        per_style[bank.glyph] *= 0.15
        groups = [
            (bank.word < len(ANIMALS), animals),
            ((bank.word >= len(ANIMALS)) & (bank.word < len(SUBJECTS)), extras),
            (bank.word >= len(SUBJECTS), rest),
        ]
        for group, share in groups:
            total = torch.zeros(len(bank.words)).index_add_(0, bank.word[group], per_style[group])
            weight = per_style[group] / total[bank.word[group]]
            self._weight[group] = share * weight / weight.sum()
        self._glyph = bank.glyph
        self._palette = torch.tensor(list(COLOURS.values())).float() / 255
        self._allowed = allowed_pairs(len(bank.words)).float()
        # White as often as two colours.
        self._allowed[:, 0] = 2.0

    def batch(self, count: int, hard: torch.Tensor) -> Batch:
        """Paint `count` pictures; only where bool [count] `hard` holds are shape and ink disturbed."""
        drawing = torch.multinomial(self._weight, count, replacement=True)
        word = self.bank.word[drawing]
        ink = warp(self.bank.ink[drawing].float() / 255, hard)
        glyph = self._glyph[drawing]
        changed = hard | glyph
        ink[changed] = recolour(ink[changed], glyph[changed])
        colour = torch.multinomial(self._allowed[word], 1).squeeze(1)
        ground = self._palette[colour]
        ground = ground + (torch.rand(count, 3) - 0.5) * 0.05 * (colour > 0)[:, None]
        ground = ground[:, :, None, None].expand(-1, -1, SIZE, SIZE)
        odd = torch.rand(count) < 0.3
        ground = ground.clone()
        ground[odd] = odd_ground(int(odd.sum()))
        colour = torch.where(odd, UNKNOWN, colour)
        pictures = ink[:, :3] + ground * (1 - ink[:, 3:])
        return Batch((2 * pictures - 1).clamp(-1, 1), drawing, word, colour)


def _between(count: int, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(count)


def warp(ink: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
    """Scale, mirror, shift and, where `hard`, stretch, turn, shear and bend: float [B, 4, S, S] → [B, 4, 64, 64]."""
    count, much = len(ink), hard.float()
    scale = _between(count, 0.55, 1.02)
    aspect = torch.exp(_between(count, -0.15, 0.15) * much)
    angle = torch.randn(count).clamp(-2, 2) * math.radians(9) * much
    shear = torch.randn(count).clamp(-2, 2) * 0.1 * much
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    # From a place in the picture to the place in the drawing.
    rows = [[cos / (scale * aspect) * mirror, (sin + shear) / (scale * aspect) * mirror], [-sin / scale, cos / scale]]
    linear = torch.stack([torch.stack(row, 1) for row in rows], 1)
    room = (1 - scale).clamp_min(0.03)
    shift = (2 * torch.rand(count, 2) - 1) * room[:, None] * 0.8
    offset = -(linear @ shift[:, :, None])
    grid = fn.affine_grid(torch.cat([linear, offset], 2), [count, 4, SIZE, SIZE], align_corners=False)
    bend = fn.interpolate(torch.randn(count, 2, 4, 4), SIZE, mode="bicubic", align_corners=True)
    strength = _between(count, -0.03, 0.06).clamp_min(0) * much
    strength = strength.view(-1, 1, 1, 1)
    grid = grid + (bend * strength).permute(0, 2, 3, 1)
    return fn.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _hue(angle: torch.Tensor) -> torch.Tensor:
    """Rotations of RGB about the grey axis [B, 3, 3], for angles [B] in radians."""
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return cos * torch.eye(3) + sin * cross + (1 - cos) / 3


def recolour(ink: torch.Tensor, glyph: torch.Tensor) -> torch.Tensor:
    """Change the colours of premultiplied ink [B, 4, H, W]; a glyph is painted in one random colour."""
    count = len(ink)
    rgb, alpha = ink[:, :3], ink[:, 3:]
    kind = torch.rand(count)
    angle = torch.where(kind < 0.2, _between(count, -math.pi, math.pi), torch.randn(count) * 0.12)
    mix = _hue(angle)
    grey = (kind > 0.9).float() * _between(count, 0.7, 1.0)
    saturation = (_between(count, 0.5, 1.5) * (1 - grey)).view(-1, 1, 1)
    mean = torch.full((3, 3), 1 / 3)
    mix = (saturation * torch.eye(3) + (1 - saturation) * mean) @ mix
    wild = torch.softmax(torch.randn(count, 3, 3) * 2, 2)
    mix = torch.where(((kind > 0.82) & (kind < 0.9))[:, None, None], wild, mix)
    contrast, lift = _between(count, 0.6, 1.25).view(-1, 1, 1, 1), _between(count, -0.15, 0.15).view(-1, 1, 1, 1)
    rgb = torch.einsum("bij,bjhw->bihw", mix, rgb)
    rgb = (rgb - 0.5 * alpha) * contrast + (0.5 + lift) * alpha
    gamma = torch.exp(_between(count, -0.35, 0.35)).view(-1, 1, 1, 1)
    straight = (rgb / alpha.clamp_min(1e-3)).clamp(1e-4, 1) ** gamma
    one = torch.rand(count, 3, 1, 1)
    dark = torch.rand(count, 1, 1, 1) < 0.4
    one = torch.where(dark, one * 0.25, one)
    straight = torch.where(glyph.view(-1, 1, 1, 1), one, straight)
    # A silhouette of a coloured drawing keeps a little of its shading.
    flat = (~glyph & (kind > 0.3) & (kind < 0.35)).view(-1, 1, 1, 1)
    straight = torch.where(flat, 0.85 * one + 0.15 * straight, straight)
    return torch.cat([straight * alpha, alpha], 1)


def odd_ground(count: int) -> torch.Tensor:
    """Backgrounds without a name, float [B, 3, 64, 64] in 0..1: any colour, slopes between two, patches, stripes."""
    first, second = torch.rand(2, count, 3, 1, 1).unbind(0)
    line = torch.linspace(0, 1, SIZE)
    angle = _between(count, 0, 2 * math.pi).view(-1, 1, 1, 1)
    ramp = line.view(1, 1, 1, -1) * angle.cos() + line.view(1, 1, -1, 1) * angle.sin()
    stripes = (ramp * _between(count, 3, 40).view(-1, 1, 1, 1)).sin().sign() / 2 + 0.5
    patches = fn.interpolate(torch.rand(count, 3, 5, 5), SIZE, mode="bilinear", align_corners=True)
    kind = torch.rand(count, 1, 1, 1)
    weight = torch.where(kind < 0.6, torch.zeros_like(ramp), torch.where(kind < 0.8, (ramp + 1) / 2, stripes))
    mixed = first * (1 - weight) + second * weight
    return torch.where(kind > 0.88, patches, mixed).clamp(0, 1)
