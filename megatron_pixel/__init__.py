"""Language models that read text as pixels: rendering, data, model and training."""

__version__ = "0.1.0"
