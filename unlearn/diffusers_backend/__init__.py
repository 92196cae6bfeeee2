"""DiffusersModel, the second backend: a diffusers pipeline, with its readers and writers."""
