"""Published repairs that `Patch` is compared with, one file each, under the same interface."""
