"""Published editing methods to compare with, each over the same core and beside the same source."""
