"""CapFilt: captions for web images, written and filtered by models (BLIP-2 paper, section 3.4)."""
