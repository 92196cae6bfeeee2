"""What a method works with: DiffusionModel (the model), Edit (trainable deltas), Erasure (the
result)."""
