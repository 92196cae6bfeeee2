"""Who says whether a picture shows the concept: one file for each judge."""
