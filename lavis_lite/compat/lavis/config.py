"""LAVIS' `Config`: a composed run with the attributes that LAVIS' tasks read."""

from __future__ import annotations

import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lavis_lite.compat.lavis.sections import whole_node
from lavis_lite.config.compose import Composition, compose
from lavis_lite.config.schema import Config as CoreConfig
from lavis_lite.errors import Faults


class Config:
    """run_cfg, model_cfg and datasets_cfg of a run, as OmegaConf nodes.

    Args:
        args: with cfg_path, and options (a list, or None), as LAVIS' scripts parse them; or a composed run.

    Raises:
        LavisLiteError: the files and options do not make a run; all errors at once.
    """

    def __init__(self, args: Any) -> None:
        if isinstance(args, CoreConfig):
            self.core = args
        else:
            composition: Composition = compose(args.cfg_path, list(getattr(args, "options", None) or []))
            if composition.errors:
                raise Faults(f"{args.cfg_path} cannot run:", composition.errors)
            self.core = composition.config
        sections = {"run": whole_node(self.core.run), "model": whole_node(self.core.model),
                    "datasets": {name: whole_node(section) for name, section in self.core.datasets.items()}}
        self.config: DictConfig = OmegaConf.create(sections)

    @property
    def run_cfg(self) -> Any:
        """The section `run`."""
        return self.config.run

    @property
    def model_cfg(self) -> Any:
        """The section `model`."""
        return self.config.model

    @property
    def datasets_cfg(self) -> Any:
        """The section `datasets`."""
        return self.config.datasets

    def get_config(self) -> DictConfig:
        """All of it."""
        return self.config

    def to_dict(self) -> Any:
        """All of it, as plain containers."""
        return OmegaConf.to_container(self.config)

    def pretty_print(self) -> None:
        """Print all of it as JSON."""
        print(json.dumps(self.to_dict(), indent=4, sort_keys=True))
