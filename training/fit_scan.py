"""Calibrate `unleak scan` and the gate of `unleak guard` for an embedded model, on the world's dev captions.

    python training/fit_scan.py -m emoji-sd          # writes src/unleak/models/emoji-sd/calibration.json

Memorized are the verbatim and template captions of the dev split, ordinary its open, specific and form ones. The scenes
of template captions are the same in both splits; the captions are not. The calibration is bound to the model's weights:
fit again after every training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unleak import models, world
from unleak.bench.copies.detection import MEMORIZED, captions
from unleak.copies.scan.fit import calibrate
from unleak.files.atomic import write_atomic


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("-m", "--model", default="emoji-sd")
    ap.add_argument("--out", type=Path, help="default: the model's own file")
    a = ap.parse_args()
    kinds = captions(world.load(), "dev")
    memorized = [text for kind in MEMORIZED for text in kinds[kind]]
    ordinary = [text for kind, texts in kinds.items() if kind not in MEMORIZED for text in texts]
    made = calibrate(models.load(a.model), memorized, ordinary, model=a.model, call=models.settings(a.model))
    out = a.out or models.embedded_folder(a.model) / "calibration.json"
    write_atomic(out, made.to_json())
    print(made)


if __name__ == "__main__":
    main()
