"""The CUDA path: a table of algorithms whose kernels live in `cuda_src/`."""
