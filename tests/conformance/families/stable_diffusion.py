"""Stable Diffusion 1 to 3.5 and FLUX.1: the layouts of `tiny`."""

from conformance.family import Family
from tiny import tiny

FAMILIES = [
    Family("sd1", lambda: tiny("sd1")),
    Family("sd2", lambda: tiny("sd2")),
    Family("sdxl", lambda: tiny("sdxl")),
    Family("sd3.5", lambda: tiny("sd3")),
    Family("flux.1", lambda: tiny("flux"), {"max_sequence_length": 512}),
    Family("flux.1-true-cfg", lambda: tiny("flux"), {"true_cfg_scale": 2.0, "negative_prompt": "a dog"}),
]
