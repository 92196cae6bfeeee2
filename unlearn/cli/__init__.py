"""The command line: one file per command."""

IN_PLACE = "python -m unlearn"
# The command that starts the program, in the repository's folder or installed by pip.
PROGRAM = IN_PLACE if __package__ == "unlearn.cli" else "concept-unlearn"
