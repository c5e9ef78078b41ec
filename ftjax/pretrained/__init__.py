"""Hugging Face model directories to parameters and back."""

from ftjax.pretrained.load import Pretrained, load_pretrained
from ftjax.pretrained.save import save_pretrained

__all__ = ["Pretrained", "load_pretrained", "save_pretrained"]
