"""IconCanvas's motion module, which makes clips of its pictures."""
