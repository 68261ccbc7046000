"""How a command of gpuctl ends badly."""

from __future__ import annotations


class Trouble(Exception):
    """Ends the command: the sentence goes to stderr (nothing where it is empty), ``exit_code`` to the shell."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class Usage(Exception):
    """The arguments make no sense together; shown with the command's usage line."""
