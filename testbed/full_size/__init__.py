"""Memory and seconds at the size of real models, with random weights."""
