"""One study a file: hardening, identifying, probing, transfer to video, verdicts."""
