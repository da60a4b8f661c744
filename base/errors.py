"""How a command ends other than by being done; base/command.py prints the sentence and exits with the code."""

import errno
import re

FULL = re.compile(  # what torch says of a CPU, its convolutions, CUDA and its libraries, and Python of threads
    r"out of memory|can'?t allocate memory|cannot allocate memory|std::bad_alloc|_STATUS_ALLOC_FAILED"
    r"|could not create a primitive$|can't start new thread",
    re.I,
)


class UserError(ValueError):
    """Bad input: one clear sentence naming the value, the allowed values and the way out. Exit code 2."""


class Diverged(UserError):
    """What is being learned is worth nothing any more, and is not saved."""


class Stopped(KeyboardInterrupt):
    """The process has to end (a signal, its launcher's or a fellow's death): one sentence, and the exit code.

    No Exception: what retries or replaces a failing image must not swallow it.
    """

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def out_of_memory(error: BaseException) -> bool:
    """Whether it is the machine's or a device's lack of memory: Python's, the system's, or torch's, known by its text
    alone where it is of a CPU."""
    if isinstance(error, RuntimeError):
        return FULL.search(str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
