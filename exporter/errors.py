"""The errors that Bitbrush reports: one line each, with the exit code of the command line.

A message says what was expected, what was found and where (file, tensor or argument).
"""


class BitbrushError(Exception):
    """Base of all errors that are shown as one line; `exit_code` is what the command line returns."""

    exit_code = 1


class BadArguments(BitbrushError):
    """An argument that cannot be used: a size, a seed, a folder that cannot be written."""

    exit_code = 2


class BadCheckpoint(BitbrushError):
    """A checkpoint that is missing, damaged, or of a kind that Bitbrush does not know."""

    exit_code = 3


class BadBundle(BitbrushError):
    """A bundle that is missing, damaged, or of another format version."""

    exit_code = 3


class DiskFull(BitbrushError):
    """No room for what is being written."""

    exit_code = 3


class NoBrowser(BitbrushError):
    """No usable browser or GPU on this machine."""

    exit_code = 4


class RefusedPrompt(BitbrushError):
    """A prompt that is not drawn."""

    exit_code = 5
