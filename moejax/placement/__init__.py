"""Which expert lives where: host code, numpy in and numpy out."""
