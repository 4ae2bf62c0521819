"""What is held out: the one source of every decision on what training may see.

Separation is by construction, with two rules:

* an *item* (a question with its context, an equation, a sentence) whose digest falls into the reserved eighth is never written
  into any training, calibration or held-out document; task items come from there only;
* a *document* whose digest falls into a reserved hundredth goes to the held-out or to the calibration text, and never into the
  training stream.

Facts are the exception that knowledge needs: the fact itself is taught, in many phrasings, but for every fact one of its four
question phrasings is reserved (`World.reserved_phrasing`), and the task asks exactly that one.
"""

from __future__ import annotations

import hashlib

ITEM_BUCKETS = 8  # one eighth of all possible items is reserved for the tasks
DOCUMENT_BUCKETS = 100  # bucket 0: held-out text, bucket 1: calibration text, the rest: training


def bucket(text: str, *, buckets: int) -> int:
    """Digest of `text` reduced to 0..buckets-1."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") % buckets


def item_is_reserved(key: str) -> bool:
    """True if this item may appear in a task and must not appear in any document."""
    return bucket("item:" + key, buckets=ITEM_BUCKETS) == 0
