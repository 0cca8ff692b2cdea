"""The agent role: owns partitions of the run log, calls the model, fans calls out and results in."""
