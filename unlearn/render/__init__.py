"""Text tables, fonts and labelled sheets of pictures."""
