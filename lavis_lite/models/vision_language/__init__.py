"""Any encoder, any connector, any language model: the model `vision_language`."""
