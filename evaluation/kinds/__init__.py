"""Kinds of measurement, one a file; a file may bring protocols of its own, as PROTOCOLS."""
