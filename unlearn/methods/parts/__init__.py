"""What methods share: the frame of a run, the closed-form start, hardening, retention."""
