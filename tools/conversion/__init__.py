"""The steps of `python -m tools.convert`: read a data set, prepare each image, write it in parts, read it back."""
