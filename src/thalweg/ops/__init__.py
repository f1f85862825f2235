"""The mathematics of every op: shape rule, NumPy reference, gradient rule, axis rule, kind and test samples."""
