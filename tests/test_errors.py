"""Which errors mean that memory ran out: each as the library that raises it says it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from harness.child.failures import failure_kind
from harness.errors import ServerTrouble, is_out_of_memory


def host_tensor() -> None:
    torch.empty(1 << 55)


def array() -> None:
    np.empty(1 << 55)


def device() -> None:
    raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")


def standard_library_of_c() -> None:
    raise RuntimeError("std::bad_alloc")


@pytest.mark.parametrize("work", [host_tensor, array, device, standard_library_of_c])
def test_running_out_of_memory_is_known_from_every_library(work: Callable[[], None]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        work()
    assert is_out_of_memory(caught.value)
    assert failure_kind(caught.value) == "oom"


def test_other_errors_and_a_servers_own_memory_are_not_meant() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    trouble = ServerTrouble("server http://x: HTTP 500 (CUDA out of memory)", "error")
    assert not is_out_of_memory(trouble)
    assert failure_kind(trouble) == "error"
