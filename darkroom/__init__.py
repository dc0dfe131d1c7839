"""Darkroom: teach an image or video diffusion model your own pictures."""

__version__ = "0.1.0"
