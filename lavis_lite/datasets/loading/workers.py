"""torch's iterator over loader workers, with an end that waits for nobody."""

from __future__ import annotations

from typing import Any

from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lavis_lite.errors import LavisLiteError, WorkerError
from lavis_lite.process import limits

CHECK_SECONDS = 1.0
"""between looks at whether all workers are still there; mostly the system tells at once"""


class WorkerIterator(_MultiProcessingDataLoaderIter):
    """Batches from loader workers.

    Attributes of torch's class that have an underscore are used here and nowhere else.

    Args:
        loader: the DataLoader; its `multiprocessing_context` decides how workers live.
    """

    def __init__(self, loader: Any) -> None:
        try:
            super().__init__(loader)
        except BaseException:  # the third of four workers could not be started
            self.kill()
            raise

    def _try_get_data(self, timeout: float = CHECK_SECONDS) -> Any:
        return super()._try_get_data(timeout)

    def explain(self, fault: BaseException) -> LavisLiteError | None:
        """A clearer error in place of one that torch raised for a worker; None if it is clear enough.

        An error of this package arrives with the worker's traceback as its message, and a worker that died is an error
        that does not say how.
        """
        if isinstance(fault, LavisLiteError) and str(fault).startswith("Caught "):
            name = f"{type(fault).__module__}.{type(fault).__qualname__}: "
            return type(fault)(str(fault).rpartition(name)[2].strip())
        if isinstance(fault, (RuntimeError, OSError, EOFError)):  # the latter two: it died while it handed over
            for worker in self._workers:
                worker.join(0.0 if isinstance(fault, RuntimeError) else 0.2)
                if worker.exitcode:
                    return WorkerError(limits.describe_death(worker.pid or 0, worker.exitcode))
        return None

    def kill(self) -> None:
        """End the workers now, and leave torch nothing to wait for.

        torch's own way waits five seconds for each worker that does not answer, and for ever on a lock that a killed
        worker held. So nothing that is shared with the workers is touched.
        """
        if getattr(self, "_worker_pids_set", False):  # else torch takes the kill for a fault
            signal_handling._remove_worker_pids(id(self))  # type: ignore[attr-defined]
            self._worker_pids_set = False
        self._shutdown = True
        if hasattr(self, "_pin_memory_thread_done_event"):
            self._pin_memory_thread_done_event.set()
        for name in ("_index_queues", "_worker_result_queue"):
            queues = getattr(self, name, [])
            for queue in queues if isinstance(queues, list) else [queues]:
                queue.cancel_join_thread()
        for worker in getattr(self, "_workers", []):
            worker.kill()
        for worker in getattr(self, "_workers", []):
            worker.join()

    def __del__(self) -> None:
        if not self._shutdown:
            super().__del__()
