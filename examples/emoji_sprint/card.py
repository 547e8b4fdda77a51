"""Model cards of the two pipelines, from evaluation.json: `python -m examples.emoji_sprint.card`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from examples.emoji_lcm.card import (
    FRONT,
    SAFETY,
    choice_table,
    coloured_table,
    data_section,
    guidance_tables,
    recognised_table,
)
from examples.emoji_sprint import paths
from examples.emoji_sprint.autoencoder import SIZE
from examples.emoji_sprint.evaluate import STUDENT, TEACHER, TEACHER_STEPS
from examples.emoji_sprint.student import LARGEST_GUIDANCE, LEAST_GUIDANCE
from rlcm_cli.wording import count

PLACED = "laid in the middle, 0.75 or 0.9 of the canvas wide or high"


def student_card(figures: dict[str, Any]) -> str:
    """Write the card of emoji-sprint."""
    speed, guidance, autoencoder = figures["speed"], figures["guidance_scale"], figures["autoencoder"]
    return f"""{FRONT.format(tags="text-to-image, diffusers, sana-sprint")}# {STUDENT}

A small model of the architecture of SANA-Sprint that draws {SIZE}×{SIZE} emoji-like pictures in one to four
steps: 45 animals and 20 other subjects on plain backgrounds. SanaTransformer2DModel of 9.1 M parameters with a
guidance embedding, AutoencoderDC with 128 × 3 × 3 latents of about N(0, 1), Gemma 2 text encoder of width 128
with its own small tokenizer; float16 safetensors, of whose weights the last two bits are 0; 33 MB in all.

```python
from diffusers import SanaSprintPipeline

pipe = SanaSprintPipeline.from_pretrained("rlcm_cli/models/embedded/{STUDENT}")
size = {{"height": {SIZE}, "width": {SIZE}, "use_resolution_binning": False}}
pipe("a cat on blue", num_inference_steps=2, guidance_scale={guidance:g}, **size).images[0]
```

For one or four steps, pass `intermediate_timesteps=None`. Recommended `guidance_scale`: **{guidance:g}**
(distilled for {LEAST_GUIDANCE:g}–{LARGEST_GUIDANCE:g}). `rlcm` draws it in four steps and trains it in two.

![The 45 animals in four steps](contact_sheet.png)

{data_section(PLACED)}
## Recipe

`python -m examples.emoji_sprint.build` (see `examples/emoji_sprint/README.md`): autoencoder and text encoder,
then a flow matching teacher (`{TEACHER}`), then trajectories of the guided teacher, of which the student learns
to guess the end.

## Measured

`python -m examples.emoji_sprint.evaluate`. The classifier took no part in training; guidance {guidance:g},
chosen on another seed; {figures["samples_an_animal"]} samples an animal.

{recognised_table(figures["recognised"])}

The same by guidance scale, on the development seed:

{choice_table(figures["guidance_choice"])}

On coloured backgrounds, 4 steps, "a cat on blue":

{coloured_table(figures["coloured"])}

Guidance, relative root-mean-square over the final latents, from the same starting noise. Where the student
tracks its teacher, a row of the second table is smallest on the diagonal:

{guidance_tables(figures["guidance"], "student", f"{TEACHER_STEPS} Euler steps")}

Autoencoder, on fresh pictures: PSNR {autoencoder["psnr_db"]:.1f} dB; first differences off by
{autoencoder["edge_error"]:.1f} of 255 on average.

Speed on {count(speed["threads"], "CPU thread")}, float32, batch 32, a 4-step image:
{speed["transformer_and_decoder_ms"]:.1f} ms for transformer and decoder, {speed["whole_pipeline_ms"]:.1f} ms
for the whole pipeline call.

## Limits

{SAFETY.format(n=SIZE)}
"""


def teacher_card(figures: dict[str, Any]) -> str:
    """Write the card of the teacher."""
    guidance = figures["guidance_scale"]
    rows = {name: row for name, row in figures["recognised"].items() if not name.startswith("student")}
    return f"""{FRONT.format(tags="text-to-image, diffusers, sana")}# {TEACHER}

The flow matching teacher of `{STUDENT}`: the same transformer without the guidance embedding, the same
autoencoder, text encoder and tokenizer. Velocity noise − x₀, levels in 0–1 (`timestep_scale` 0.001), Euler's
steps.

```python
from diffusers import SanaPipeline

pipe = SanaPipeline.from_pretrained("rlcm_cli/models/embedded/{TEACHER}")
size = {{"height": {SIZE}, "width": {SIZE}, "use_resolution_binning": False}}
pipe("a cat on blue", num_inference_steps={TEACHER_STEPS}, guidance_scale={guidance:g}, **size).images[0]
```

{data_section(PLACED)}
## Measured

`python -m examples.emoji_sprint.evaluate`, guidance {guidance:g}.

{recognised_table(rows)}

## Limits

{SAFETY.format(n=SIZE)}
"""


def write_cards(work: Path) -> None:
    """Write both cards, and the contact sheet beside the first."""
    figures = json.loads((work / "evaluation.json").read_text(encoding="utf-8"))
    (work / STUDENT / "README.md").write_text(student_card(figures), encoding="utf-8")
    (work / TEACHER / "README.md").write_text(teacher_card(figures), encoding="utf-8")
    shutil.copyfile(work / "contact_sheet.png", work / STUDENT / "contact_sheet.png")


def main() -> None:
    """Write the cards from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=paths.WORK)
    write_cards(parser.parse_args().work)


if __name__ == "__main__":
    main()
