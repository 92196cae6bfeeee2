"""Memory and time at the size of real models, with random weights."""
