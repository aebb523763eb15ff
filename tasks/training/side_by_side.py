"""Two parts of a line at once, each on half of the cores.

A product gains little from the second core when the first is not waited for, and all that is no product
(small operations, their bookkeeping, Python) leaves other cores idle. `benchmarks/train.py` shows the gain.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

AT_ONCE = 2
Loss = Callable[[], torch.Tensor]


class SideBySide:
    """Threads that compute losses and their gradients, `AT_ONCE` at a time."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], cores: int) -> None:
        """`parameters`: what is trained. `cores`: of all threads together."""
        self._parameters = parameters
        self._cores = cores
        self._threads = ThreadPoolExecutor(AT_ONCE, "part-of-a-line")

    def backward(self, losses: Sequence[Loss]) -> torch.Tensor:
        """Add the gradients of all `losses` to the parameters'; the sum of the losses.

        They are added in the order of `losses`, so that the bytes depend on nobody's being first. Whatever a
        loss raises is raised when no thread computes any more.
        """
        total = torch.zeros(())
        # No more at once than are computed: each has gradients of its own.
        for first in range(0, len(losses), AT_ONCE):
            pair = losses[first : first + AT_ONCE]
            cores = self._cores // len(pair)
            computing = [self._threads.submit(self._gradients, loss, cores) for loss in pair]
            wait(computing)
            # What they have set is the value for whoever computes for the first time from now on.
            torch.set_num_threads(self._cores)
            for loss, gradients in [one.result() for one in computing]:
                total += loss
                self._add(gradients)
        return total

    def _add(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                # In its own layout: an optimizer that fuses its operations reads memory as it lies.
                parameter.grad = gradient.contiguous()
            else:
                parameter.grad.add_(gradient)

    def _gradients(
        self, loss: Loss, cores: int
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
        # Each time: what another thread sets is taken over by one that has computed nothing yet.
        torch.set_num_threads(cores)
        value = loss()
        # Not `backward`, which adds in the order of arrival.
        return value.detach(), torch.autograd.grad(value, self._parameters, allow_unused=True)
