"""DiffusersModel: the second backend, a diffusers pipeline. Its file readers and writers, too."""
