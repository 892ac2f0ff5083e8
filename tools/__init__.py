"""Makes the embedded default's assets: the mini ViT and the word-piece tokenizer."""
