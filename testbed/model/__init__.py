"""IconCanvas: its drawings, its networks, its training, and the judge."""
