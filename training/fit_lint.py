"""Fit the risk of `unleak lint` on the embedded world's dev prompts, and measure it on the held-out ones.

    python training/fit_lint.py -m emoji-sd                       # writes src/unleak/words/data/lint-emoji-sd.json
    python training/fit_lint.py -m emoji-sd --text runs/text      # for a text encoder that is not packaged yet

The calibration is bound to the encoder's weights as the package stores them (half precision): fit again after every
training of the text encoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import CLIPTextModel, CLIPTokenizer

from unleak import models, world
from unleak.bench.words.lint import figures, labelled
from unleak.files.atomic import write_atomic
from unleak.words.lint.calibration import file_of
from unleak.words.lint.lint import Linter, calibrate


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("-m", "--model", default="emoji-sd")
    ap.add_argument("--text", type=Path, help="a folder with text_encoder and tokenizer, in place of the model's")
    ap.add_argument("--out", type=Path, help="default: the package's own file for this model")
    a = ap.parse_args()
    out = a.out or file_of(Path(a.model).name)
    pipe = models.load(a.model, text_only=True)
    if a.text:
        pipe.text_encoder = CLIPTextModel.from_pretrained(a.text / "text_encoder").half().float().eval()
        pipe.tokenizer = CLIPTokenizer.from_pretrained(a.text / "tokenizer")
    call = models.settings(a.model)
    linter, w = Linter(pipe, **call), world.load()
    dev = [one.line for one in labelled(w, "dev")]
    made = calibrate(linter, dev, f"{len(dev)} dev prompts of the embedded world, of one to four objects")
    write_atomic(out, made.to_json())
    print(out)
    print(made.to_json(), end="")
    for row in figures(Linter(pipe, made, **call), labelled(w, "heldout")):
        figure = f"{row.value:.4f} ({row.low:.4f} to {row.high:.4f}), n = {row.n}, units = {row.units}"
        print(f"{row.metric} ({row.subset}): {figure}")


if __name__ == "__main__":
    main()
