"""What the experiments share: their models, texts and measurements. Run from the repository's root, with `python -m`."""
