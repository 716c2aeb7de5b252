"""What editing papers measure: leakage, the background, structure. Images are uint8 [N, H, W, 3], masks 0..1 [K, H, W].

Nothing here knows a model: whoever measures gives the functions that compare images with texts or make features.
"""
