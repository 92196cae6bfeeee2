"""DiffusersModel, the backend for diffusers pipelines, with its readers and writers of files."""
