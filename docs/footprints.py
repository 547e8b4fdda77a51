"""Compute footprints.json, from which the tables of memory.md are made: minutes on one core, no weights.

python docs/footprints.py [NAME...] && python docs/tables.py
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rlcm_cli.measuring.footprint import measure_architecture
from rlcm_cli.models.parts import RANDOM

FILE = Path(__file__).with_name("footprints.json")


def main() -> None:
    """Write the file again, the smallest denoiser first: all architectures, or those that are named."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    for name in sys.argv[1:] or RANDOM:
        print(name, flush=True)
        found[name] = asdict(measure_architecture(name))
    ordered = sorted(found.keys() & RANDOM.keys(), key=lambda name: (found[name]["denoiser"]["total"], name))
    text = json.dumps({name: found[name] for name in ordered}, indent=1)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
