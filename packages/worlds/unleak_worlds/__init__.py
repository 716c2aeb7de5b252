"""Weights of the embedded models and judges of `unleak`; `unleak.models.shipped` finds them."""
