"""Darkroom: teach an image or video diffusion model your own images."""

__version__ = "0.1.0"
