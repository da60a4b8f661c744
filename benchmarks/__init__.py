"""The evidence behind docs/: python -m benchmarks.NAME in a checkout. Not installed."""

from saccade.base.libraries import prepare_libraries

prepare_libraries()  # before torch is imported
