"""How a command ends other than by being done; base/command.py prints the sentence and exits with the code."""


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
