"""What pyproject.toml cannot say: the rooms at the top level are installed as one package, `saccade`."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOMS = ("base", "pipelines", "models", "losses", "evaluation", "runs", "tools")
MODULES = ("__init__", "train", "eval", "cli")


class BuildPy(build_py):
    """Of the files at the top level only MODULES are installed: not this one, not the tests' conftest."""

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if package != "saccade" or entry[1] in MODULES]


rooms = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])
setup(
    packages=["saccade", *(f"saccade.{room}" for room in rooms)],
    package_dir={"saccade": "."},
    cmdclass={"build_py": BuildPy},
)
