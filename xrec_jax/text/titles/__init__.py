"""Item titles inside running text: normalisation, matching and masking."""
