"""The real ComfyUI: in this process, as a server, in other versions, under load."""
