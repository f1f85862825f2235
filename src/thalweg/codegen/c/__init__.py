"""The C backend: the vector library, kernels, the runtime, building and exporting."""
