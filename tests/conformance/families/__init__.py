"""One file for a few related pipelines; each holds ``FAMILIES``, a list of `conformance.family.Family`."""
