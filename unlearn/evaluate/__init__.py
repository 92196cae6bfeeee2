"""Measurements: classifier, detection, collateral, probe, receipt, verdict and picture check."""
