"""What may be none in general and is there in a test."""

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """`value`, which is not None: a type checker cannot know what this test's data hold."""
    assert value is not None
    return value
