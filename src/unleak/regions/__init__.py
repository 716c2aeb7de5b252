"""Leaks between regions: edit several objects of an image and change nothing else."""
