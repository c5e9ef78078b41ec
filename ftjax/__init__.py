"""ftjax: fine-tune pretrained language models in JAX — fully, in part, or with a self-supervised loss."""

__version__ = "0.1.0"
