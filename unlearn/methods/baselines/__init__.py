"""CPDM's two baselines, to compare with."""
