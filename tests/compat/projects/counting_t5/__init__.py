import os

from lavis.common.registry import registry

root_dir = os.path.dirname(os.path.abspath(__file__))
registry.register_path("counting_root", root_dir)

from counting_t5.builder import CountBuilder  # noqa: E402
from counting_t5.model import Blip2T5Counter  # noqa: E402
from counting_t5.task import CountTask  # noqa: E402

__all__ = ["Blip2T5Counter", "CountBuilder", "CountTask"]
