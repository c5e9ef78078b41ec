"""Hugging Face model directories to parameters and back."""

from ftjax.pretrained.load import Pretrained, load_pretrained, merge
from ftjax.pretrained.save import save_adapter, save_pretrained

__all__ = ["Pretrained", "load_pretrained", "merge", "save_adapter", "save_pretrained"]
