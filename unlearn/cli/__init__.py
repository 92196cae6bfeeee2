"""The command line: one command a file."""

IN_PLACE = "python -m unlearn"
# How a user starts the program: from the repository's folder, or installed by pip.
PROGRAM = IN_PLACE if __package__ == "unlearn.cli" else "concept-unlearn"
