from own_copies.stage1 import OwnStage1
from own_copies.vicuna import OwnVicuna

__all__ = ["OwnStage1", "OwnVicuna"]
