"""What `anabranch enrich` does: records read, asked about, counted and shown, and their answers written."""
