"""From loose files to a raw dataset: what the files are, which label map belongs to which scan, and the labels."""
