"""Commands: `saccade NAME`, or python -m tools.NAME in a checkout."""

if __name__ == "tools":  # python -m tools.NAME
    import sys

    from base.checkout import start

    start(f"tools {' '.join(sys.argv[1:2])}".strip())

from saccade.base.libraries import prepare_libraries

prepare_libraries()  # before torch is imported
