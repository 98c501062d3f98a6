"""Methods that the paper compares MRE-Net with, one file each."""
