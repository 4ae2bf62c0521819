"""How far a library is, told to the parent while it works: it may be silent for an hour otherwise.

Libraries that quantize with torch run a model's layers one after another, each in its own way, and tell of it in their own way
or not at all. So the layers themselves are watched: torch calls a hook for every module that is called, and one for every module
that is put into another, which tells a layer's number. Neither changes what is computed. What runs no torch layer is shown by the
last line that it has said.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.child.events import Event, Progress
from harness.files import tail
from harness.formats import config_json

if TYPE_CHECKING:
    from torch import nn

Tell = Callable[[Event], None]

LOOK_SECONDS = 2.0
"""Between two looks at which layer it is. The hook itself tells nothing: it may be called a thousand times a second."""

REPEAT_SECONDS = 20.0
"""After so long without news the same is told again, as a sign of life."""


class Counted:
    """Tells how many of something are done, at most once in LOOK_SECONDS, the last one always."""

    def __init__(self, tell: Tell, unit: str) -> None:
        self._tell, self._unit, self._told = tell, unit, 0.0

    def at(self, done: int, total: int) -> None:
        if done >= total or time.monotonic() - self._told >= LOOK_SECONDS:
            self._told = time.monotonic()
            self._tell(Progress(done=done, total=total, unit=self._unit))


@contextlib.contextmanager
def layers(model_dir: Path, tell: Tell, *, log: Path, torch: bool) -> Iterator[None]:
    """Inside, the parent is told which of the model's layers runs. `torch`: whether the library works with it; `log`: where
    what is said goes."""
    config = config_json.text_part(config_json.read(model_dir)) if (model_dir / "config.json").is_file() else {}
    count = config_json.integer(config, "num_hidden_layers", "n_layer")
    watched = _Layers(count)
    done = threading.Event()
    teller = threading.Thread(target=_report, args=(watched, tell, log, done), daemon=True)
    teller.start()
    try:
        with watched.hooks() if torch and count else contextlib.nullcontext():
            yield
    finally:
        done.set()
        teller.join()


class _Layers:
    """Which of a model's layers was called last: `now`, from 1; 0 before the first one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.now = 0
        self._places: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[nn.ModuleList], int]] = weakref.WeakKeyDictionary()
        self._list: nn.ModuleList | None = None

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        from torch.nn.modules import module

        placed = module.register_module_module_registration_hook(self._placed)
        called = module.register_module_forward_pre_hook(self._called)
        try:
            yield
        finally:
            placed.remove()
            called.remove()
            self._list = None

    def _placed(self, parent: nn.Module, name: str, child: nn.Module | None) -> None:
        from torch import nn

        if isinstance(parent, nn.ModuleList) and child is not None and child not in self._places:  # a slice is another list
            self._places[child] = (weakref.ref(parent), int(name))

    def _called(self, module: nn.Module, _: object) -> None:
        place = self._places.get(module)
        if place is None:
            return
        if self._list is None:  # the outermost list is called first: experts are called by their layer
            parent = place[0]()
            if parent is None or len(parent) != self.count:
                return
            self._list = parent
        if place[0]() is self._list:
            self.now = place[1] + 1


def _report(watched: _Layers, tell: Tell, log: Path, done: threading.Event) -> None:
    told, at = 0, time.monotonic()
    while not done.wait(LOOK_SECONDS):
        quiet = time.monotonic() - at >= REPEAT_SECONDS
        if watched.now != told or quiet:
            told, at = watched.now, time.monotonic()
            tell(Progress(done=told, total=watched.count if told else 0, unit="layer", said="" if told else _last(log)))


def _last(log: Path) -> str:
    """The last line of a log, as somebody would see it: what comes after the last return of the carriage."""
    lines = [part.strip() for part in tail(log).replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:200]
