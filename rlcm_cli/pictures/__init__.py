"""Pictures made with a model, a run or an export: generation, contact sheets, metadata in PNGs, exported weights."""
