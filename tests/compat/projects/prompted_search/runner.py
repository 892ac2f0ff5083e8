import logging
import math

from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase


class HoldThenDrop:
    def __init__(self, optimizer, max_epoch, min_lr, init_lr, warmup_steps=0, warmup_start_lr=-1, **kwargs):
        self.optimizer = optimizer
        self.max_epoch = max_epoch
        self.init_lr, self.min_lr = init_lr, min_lr
        self.warmup_steps, self.warmup_start_lr = warmup_steps, warmup_start_lr

    def step(self, cur_epoch, cur_step):
        if cur_epoch == 0 and cur_step < self.warmup_steps:
            lr = self.warmup_start_lr + (self.init_lr - self.warmup_start_lr) * cur_step / max(self.warmup_steps, 1)
        else:
            lr = self.init_lr if cur_epoch < math.ceil(self.max_epoch / 2) else self.min_lr
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = lr


@registry.register_runner("runner_search")
class SearchRunner(RunnerBase):
    def __init__(self, cfg, task, model, datasets, job_id):
        super().__init__(cfg, task, model, datasets, job_id)
        self.patience = self.config.run_cfg.get("patience", 3)

    @property
    def lr_scheduler(self):
        if self._lr_sched is None:
            warmup = self.config.run_cfg.get("warmup_steps", 0)
            self._lr_sched = HoldThenDrop(optimizer=self.optimizer, max_epoch=self.max_epoch, min_lr=self.min_lr,
                                          init_lr=self.init_lr, warmup_steps=warmup,
                                          warmup_start_lr=self.config.run_cfg.get("warmup_lr", -1))
        return self._lr_sched

    def train(self):
        logging.info("patience %s of %s epochs", self.patience, self.max_epoch)
        return super().train()
