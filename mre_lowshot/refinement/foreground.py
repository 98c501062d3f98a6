"""Which voxels the refinement works on."""

FOREGROUND_MIN = 0.02  # probability of any foreground class from which a voxel takes part
