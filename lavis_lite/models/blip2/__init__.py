"""BLIP-2 and InstructBLIP: stage 1 with its objectives, and the Q-Former in front of a language model."""
