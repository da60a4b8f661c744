"""The one error a user can cause; the commands print its sentence and exit with code 2."""


class UserError(ValueError):
    """Bad input: one clear sentence naming the value, the allowed values and the way out."""
