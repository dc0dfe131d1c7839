"""The mathematics of diffusion: tensors in, tensors out. No config, no devices, no logging."""
