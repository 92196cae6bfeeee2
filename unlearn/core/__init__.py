"""What a method may ask of a model, and what it leaves: DiffusionModel, Edit, Erasure."""
