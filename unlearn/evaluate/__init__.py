"""What is measured: classifier, detection, collateral damage, probe, receipt, verdict."""
