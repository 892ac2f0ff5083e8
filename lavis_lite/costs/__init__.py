"""What a training step costs, before it runs: memory, arithmetic, traffic and disk, counted on the meta device."""
