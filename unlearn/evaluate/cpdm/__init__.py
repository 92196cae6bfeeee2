"""CPDM, the copyright metric of Ma et al., arXiv 2403.12052."""
