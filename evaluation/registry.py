"""Finds protocols: the papers', those that a kind brings along, those of installed packages and of the user's own."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache, partial

from saccade.base import own
from saccade.base.errors import UserError
from saccade.base.text import did_you_mean
from saccade.evaluation import kinds
from saccade.evaluation.protocol import Protocol
from saccade.evaluation.protocols import PROTOCOLS
from saccade.models.backbone import LARGE_IMAGE

ENTRY_POINTS = "saccade.protocols"  # NAME = "package.module", a module that defines PROTOCOLS


@cache
def protocols() -> dict[str, Protocol]:
    """name -> Protocol: the papers' first, in their order."""
    found = {protocol.name: protocol for protocol in PROTOCOLS}
    for info in pkgutil.iter_modules(kinds.__path__):
        module = importlib.import_module(f"{kinds.__name__}.{info.name}")
        found |= {protocol.name: protocol for protocol in getattr(module, "PROTOCOLS", ())}
    for _, there in own.offered(ENTRY_POINTS, partial(own.listed, "PROTOCOLS", Protocol)):
        found |= {protocol.name: protocol for protocol in there if protocol.name not in found}
    return found


def check_recipe(protocol: str) -> None:
    """UserError for a recipe's protocol that nobody offers; one of the user's own is not opened here."""
    if protocol not in protocols() and not own.names_code(protocol):
        raise UserError(
            f"the recipe's protocol {protocol!r} is unknown; use one of {', '.join(protocols())}"
            f"{did_you_mean(protocol, protocols())}."
        )


def find_protocol(name: str, image_size: int | None = None) -> Protocol:
    """The protocol called `name`, or at path/to/file.py[:NAME] or package.module[:NAME]; or its form for large images.

    A UserError that names the nearest where there is none. A file or module given so is executed: take it from the
    user alone, never from something received.
    """
    known = protocols()
    if name not in known and own.names_code(name):
        found = own.chosen(name, "PROTOCOLS", Protocol, "--protocol")
        known = {**known, found.name: found}
        name = found.name
    if name not in known:
        raise UserError(
            f"--protocol {name} is unknown; use one of {', '.join(known)}{did_you_mean(name, known)}, "
            "or one of your own as path/to/file.py or package.module."
        )
    protocol = known[name]
    if protocol.large and image_size is not None and image_size >= LARGE_IMAGE:
        return known[protocol.large]
    return protocol
