"""The demo, and the thumbnails of the workflows."""
