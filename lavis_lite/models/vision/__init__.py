"""Vision encoders: ViTs of timm by name, from an image to one feature per patch."""
