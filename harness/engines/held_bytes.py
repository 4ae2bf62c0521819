"""Bytes of the tensors that a loaded model or a cache holds."""

from __future__ import annotations

import torch


def bytes_of(root: object) -> int:
    """Bytes of all tensors that an object holds, each storage once: parameters and buffers of a module, and tensors that a
    module or cache keeps in plain attributes (quantizers keep scales and packed weights there)."""
    storages: dict[tuple[str, int], int] = {}
    seen: set[int] = set()
    todo: list[object] = [root]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            inner = getattr(item, "__tensor_flatten__", None)
            if inner is not None and type(item) is not torch.Tensor:
                names, _ = inner()
                todo.extend(getattr(item, name) for name in names)
                continue
            storage = item.untyped_storage()
            if storage.size():
                storages[str(item.device), storage.data_ptr()] = storage.size()
            # bitsandbytes hangs its scales (a QuantState) on the weight itself.
            todo.extend(value for name, value in vars(item).items() if name == "quant_state")
        elif isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple)):
            todo.extend(item)
        elif isinstance(item, torch.nn.Module) or _may_hold_tensors(item):
            todo.extend(vars(item).values())
    return sum(storages.values())


def _may_hold_tensors(item: object) -> bool:
    """Caches and their layers, and the state objects of quantizers; not functions, classes, configurations or modules of
    Python."""
    kind = type(item)
    return hasattr(item, "__dict__") and (
        kind.__module__ == "transformers.cache_utils" or kind.__name__ in ("QuantState", "MatmulLtState", "Int8Params")
    )
