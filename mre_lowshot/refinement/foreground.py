"""The voxels that the refinement changes."""

FOREGROUND_MIN = 0.02  # probability of any foreground class from which a voxel takes part
