"""What to run so that every request is answered once: requests as token ids -> headers, rows and scored positions.

All distinct inputs are sorted, so that neighbours share prefixes, and are laid out as prefix trees:

- a **row** is a tree of token ids in depth-first order. A token sees its ancestors only, which `last` says in one number per
  token: token j is an ancestor of i (or i itself) exactly if `j <= i < last[j]`. The choices of a question branch from its
  context inside one row;
- a **header** is a prefix shared by several rows (few-shot examples, instructions). It is run once and its keys and values are
  reused; headers nest. Tokens of a row under a header of depth D have depths D, D+1, ...

Which neighbours share a row and which prefix is worth a header is chosen by a cost model in units of "one token through the
linear layers" (constants below, measured by tests/benchmarks/bench_scoring.py), never by the clock: the same requests give the
same plan.

Numpy only; nothing here knows a model. A plan is plain arrays and is written to disk as `.npz`.
"""

from __future__ import annotations

import io
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PLAN_VERSION = 3

ROW_TOKENS = 512
"""Rows with several branches stay below this, unless one input alone is longer."""

HEADER_OVERHEAD = 96.0
"""What one more call of the model costs, in tokens: a header must save more than this."""

KEYS_PER_TOKEN = 3.5
"""Attending to KEYS_PER_TOKEN * hidden_size keys costs as much as one token's linear layers (measured on a CPU: 3 to 4.2)."""

COPY_COST = 25.0
"""Under a header, appending a row's keys and values to the cached ones costs COPY_COST / hidden_size for each of its tokens, and
a fifth of that for each cached one (measured on a CPU, like the above)."""

Tokens = tuple[int, ...]

Ints: TypeAlias = NDArray[np.signedinteger]
"""Token ids, places in arrays, counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Token ids of depths [start, start + len(tokens)), after the header `parent` (-1: none)."""

    parent: int
    start: int
    tokens: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A tree of token ids under `header` (-1: none): `depth` = place of each token in its input, `last` = end of its subtree."""

    header: int
    tokens: Ints
    depth: Ints
    last: Ints

    @property
    def chain(self) -> bool:
        """One branch only: plain causal attention answers it."""
        return bool((self.last == len(self.tokens)).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything to run, and how to read the answers.

    Position p is scored in row `owner[p]` (or header `-1 - owner[p]`) at token `offset[p]`; pair m asks at `position[m]`
    (ascending) for the log-probability of `target[m]`; request r is the sum over pairs
    `request_pairs[request_start[r]:request_start[r + 1]]`. Of `asked` requests, `cut` were longer than the longest input.
    """

    headers: tuple[Header, ...]
    rows: tuple[Row, ...]
    owner: Ints
    offset: Ints
    position: Ints
    target: Ints
    request_pairs: Ints
    request_start: Ints
    plain_tokens: int
    deepest: int
    asked: int
    cut: int

    @property
    def requests(self) -> int:
        return len(self.request_start) - 1

    @property
    def tokens(self) -> int:
        """Tokens that go through the model (padding not counted)."""
        return sum(len(row.tokens) for row in self.rows) + sum(len(header.tokens) for header in self.headers)

    @property
    def shared(self) -> bool:
        """Whether anything but plain rows is in it."""
        return bool(self.headers) or any(not row.chain for row in self.rows)

    def reach(self, number: int) -> int:
        """Places of a row, those of its headers included: so far from a prefix does its last branch stand."""
        row = self.rows[number]
        above = 0 if row.header < 0 else self.headers[row.header].start + len(self.headers[row.header].tokens)
        return above + len(row.tokens)

    def scored(self, owner: int, length: int) -> Ints:
        """For each of the `length` tokens of a row (or of header -1 - owner) the index of its scored position, or -1."""
        low, high = np.searchsorted(self.owner, [owner, owner + 1])
        index = np.full(length, -1, np.int64)
        index[self.offset[low:high]] = np.arange(low, high)
        return index

    def collect(self, logprob: NDArray[np.float32], greedy: NDArray[np.bool_]) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, all greedy) per request, of the pairs' answers; sums in float64."""
        answers = []
        for first, end in zip(self.request_start[:-1], self.request_start[1:], strict=True):
            pairs = self.request_pairs[first:end]
            answers.append((float(logprob[pairs].sum(dtype=np.float64)), bool(greedy[pairs].all())))
        return answers

    def to_bytes(self) -> bytes:
        """The plan as `.npz` bytes (no pickle)."""
        rows, headers = self.rows, self.headers
        arrays = {
            "version": np.array([PLAN_VERSION]),
            "row_header": np.array([row.header for row in rows], np.int32),
            "row_length": np.array([len(row.tokens) for row in rows], np.int32),
            "row_tokens": _join([row.tokens for row in rows]),
            "row_depth": _join([row.depth for row in rows]),
            "row_last": _join([row.last for row in rows]),
            "header_parent": np.array([header.parent for header in headers], np.int32),
            "header_start": np.array([header.start for header in headers], np.int32),
            "header_length": np.array([len(header.tokens) for header in headers], np.int32),
            "header_tokens": _join([header.tokens for header in headers]),
            "owner": self.owner,
            "offset": self.offset,
            "position": self.position,
            "target": self.target,
            "request_pairs": self.request_pairs,
            "request_start": self.request_start,
            "facts": np.array([self.plain_tokens, self.deepest, self.asked, self.cut], np.int64),
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Plan:
        """Inverse of `to_bytes`; ValueError if it is no plan of this version."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                a = {name: archive[name] for name in archive.files}
            if int(a["version"][0]) != PLAN_VERSION:
                raise ValueError(f"plan version {int(a['version'][0])}, wanted {PLAN_VERSION}")
            row_cuts, header_cuts = np.cumsum(a["row_length"])[:-1], np.cumsum(a["header_length"])[:-1]
            parts = [np.split(a[f"row_{name}"], row_cuts) if len(a["row_length"]) else [] for name in ("tokens", "depth", "last")]
            rows = tuple(
                Row(header=int(header), tokens=tokens, depth=depth, last=last)
                for header, tokens, depth, last in zip(a["row_header"], *parts, strict=True)
            )
            header_tokens = np.split(a["header_tokens"], header_cuts) if len(a["header_length"]) else []
            headers = tuple(
                Header(parent=int(parent), start=int(start), tokens=tokens)
                for parent, start, tokens in zip(a["header_parent"], a["header_start"], header_tokens, strict=True)
            )
            return Plan(
                headers=headers,
                rows=rows,
                **{name: a[name] for name in ("owner", "offset", "position", "target", "request_pairs", "request_start")},
                plain_tokens=int(a["facts"][0]),
                deepest=int(a["facts"][1]),
                asked=int(a["facts"][2]),
                cut=int(a["facts"][3]),
            )
        except (KeyError, IndexError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
            raise ValueError(f"not a scoring plan: {problem}") from problem


class UnscorableRequest(ValueError):
    """A request without a token to score, or with more of them than the model takes."""


def make_plan(
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_length: int,
    hidden_size: int,
    share: bool = True,
    share_limit: int | None = None,
    header_overhead: float = HEADER_OVERHEAD,
    row_tokens: int = ROW_TOKENS,
) -> Plan:
    """Plans requests (context ids, continuation ids), each of at least one token.

    As lm-eval does, an input is `(context + continuation)[-(max_length + 1):][:-1]` and its last `len(continuation)` positions
    are scored. `share=False` gives plain rows (equal inputs are still merged); inputs longer than `share_limit` are always plain.
    UnscorableRequest for an empty side or a continuation longer than `max_length`.
    """
    inputs: dict[Tokens, int] = {}
    asked: list[tuple[int, Sequence[int]]] = []  # (input, continuation)
    cut = 0
    for context, continuation in requests:
        if not context or not continuation or len(continuation) > max_length:
            raise UnscorableRequest(
                f"a request needs a context and a continuation of 1 to {max_length} tokens, "
                f"got {len(context)} and {len(continuation)}"
            )
        tokens = tuple((list(context) + list(continuation))[-(max_length + 1) :][:-1])
        cut += len(context) + len(continuation) > max_length + 1
        asked.append((inputs.setdefault(tokens, len(inputs)), continuation))

    sequences = list(inputs)
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    shareable = [i for i in order if share and (share_limit is None or len(sequences[i]) <= share_limit)]
    alone = [i for i in order if not share or (share_limit is not None and len(sequences[i]) > share_limit)]

    builder = _Builder(sequences, hidden_size=hidden_size, header_overhead=header_overhead, row_tokens=row_tokens)
    if shareable:
        builder.tree(shareable)
    for i in alone:
        builder.row([i], header=-1)
    return builder.finish(asked, cut)


class _Builder:
    """Collects headers and rows, and remembers where each input's tokens went."""

    def __init__(self, sequences: list[Tokens], *, hidden_size: int, header_overhead: float, row_tokens: int) -> None:
        self.sequences = sequences
        self.header_overhead = header_overhead
        self.row_tokens = row_tokens
        self.key_cost = 1.0 / (KEYS_PER_TOKEN * hidden_size)
        self.copy_cost = COPY_COST / hidden_size
        self.headers: list[Header] = []
        self.rows: list[Row] = []
        self.place: dict[int, tuple[int, int, Ints]] = {}  # input -> (header, row, offsets of its tokens below the header)

    def depth(self, header: int) -> int:
        return 0 if header < 0 else self.headers[header].start + len(self.headers[header].tokens)

    def tree(self, members: list[int]) -> None:
        """Headers and rows for inputs in sorted order."""
        sequences = self.sequences
        common = np.array([0] + [common_prefix(sequences[a], sequences[b]) for a, b in itertools.pairwise(members)], np.int64)
        fresh = np.concatenate([[0], np.cumsum([len(sequences[i]) for i in members] - common)])
        cuts = self.partition(members, base=0)
        row_of = np.zeros(len(members), np.int64)
        for number, (first, end) in enumerate(cuts):
            row_of[first:end] = number
        under = np.full(len(members), -1, np.int64)
        # Depth first through the tree of shared prefixes: an interval of neighbours, the header above it, and where that ends.
        stack = [(0, len(members), -1)]
        while stack:
            first, end, header = stack.pop()
            base = self.depth(header)
            if end - first == 1:
                under[first] = header
                continue
            shared = int(common[first + 1 : end].min())
            rows = int(row_of[end - 1] - row_of[first])  # how often the prefix would be run again without a header
            below = len(sequences[members[first]]) - shared + int(fresh[end] - fresh[first + 1])
            price = self.header_overhead + (self.copy_cost * below if header < 0 else 0.0)
            if (shared - base) * rows > price:
                tokens = np.array(sequences[members[first]][base:shared], np.int32)
                self.headers.append(Header(parent=header, start=base, tokens=tokens))
                header = len(self.headers) - 1
            bounds = [first, *(first + 1 + np.flatnonzero(common[first + 1 : end] == shared)).tolist(), end]
            under[first:end] = header
            stack.extend((a, b, header) for a, b in itertools.pairwise(bounds) if b - a > 1)
        for header in range(-1, len(self.headers)):
            mine = [members[i] for i in np.flatnonzero(under == header)]
            base = self.depth(header)
            whole = [i for i in mine if len(sequences[i]) == base]  # its last token is the header's last
            for i in whole:
                self.place[i] = (header, -1, np.empty(0, np.int32))
            mine = [i for i in mine if len(sequences[i]) > base]
            for first, end in self.partition(mine, base=base):
                self.row(mine[first:end], header=header)

    def partition(self, members: list[int], *, base: int) -> list[tuple[int, int]]:
        """Cuts neighbours into rows at the least cost (dynamic programme over the end of the last row)."""
        count = len(members)
        if not count:
            return []
        lengths = [len(self.sequences[i]) - base for i in members]
        fresh = [0] * count  # tokens that a member adds after its neighbour
        for k in range(1, count):
            fresh[k] = lengths[k] - (common_prefix(self.sequences[members[k - 1]], self.sequences[members[k]]) - base)
        best, start = [0.0] * (count + 1), [0] * (count + 1)
        for end in range(1, count + 1):
            tail = 0  # tokens of members first+1 .. end-1
            cheapest, chosen = float("inf"), end - 1
            for first in range(end - 1, -1, -1):
                tokens = lengths[first] + tail
                if first < end - 1:
                    if tail > self.row_tokens:
                        break
                    if tokens > max(self.row_tokens, 1.5 * lengths[first]):
                        tail += fresh[first]
                        continue
                cost = best[first] + tokens + self.key_cost * tokens * (base + tokens) + self.copy_cost * base / 5
                if cost < cheapest:
                    cheapest, chosen = cost, first
                tail += fresh[first]
            best[end], start[end] = cheapest, chosen
        cuts = []
        end = count
        while end:
            cuts.append((start[end], end))
            end = start[end]
        return cuts[::-1]

    def row(self, members: Sequence[int], *, header: int) -> None:
        """One row: the members' tokens below the header as a tree in depth-first order."""
        base = self.depth(header)
        tokens: list[int] = []
        depth: list[int] = []
        last: list[int] = []
        path: list[int] = []
        previous: Tokens | None = None
        for i in members:
            sequence = self.sequences[i]
            keep = 0 if previous is None else common_prefix(previous, sequence) - base
            for node in path[keep:]:
                last[node] = len(tokens)
            del path[keep:]
            for position in range(base + keep, len(sequence)):
                path.append(len(tokens))
                tokens.append(sequence[position])
                depth.append(position)
                last.append(0)
            previous = sequence
            self.place[i] = (header, len(self.rows), np.array(path, np.int32))
        for node in path:
            last[node] = len(tokens)
        self.rows.append(
            Row(header=header, tokens=np.array(tokens, np.int32), depth=np.array(depth, np.int32), last=np.array(last, np.int32))
        )

    def finish(self, asked: list[tuple[int, Sequence[int]]], cut: int) -> Plan:
        """Scored positions and pairs, each once, in order of position."""
        keys: dict[tuple[int, int, int], int] = {}
        pairs: list[int] = []
        starts = [0]
        for i, continuation in asked:
            header, row, offsets = self.place[i]
            base, length = self.depth(header), len(self.sequences[i])
            for position, wanted in zip(range(length - len(continuation), length), continuation, strict=True):
                if position >= base:
                    key = (row, int(offsets[position - base]), wanted)
                else:
                    above = header
                    while position < self.headers[above].start:
                        above = self.headers[above].parent
                    key = (-1 - above, position - self.headers[above].start, wanted)
                pairs.append(keys.setdefault(key, len(keys)))
            starts.append(len(pairs))
        triples = np.array(list(keys), np.int64).reshape(-1, 3)
        order = np.lexsort((triples[:, 2], triples[:, 1], triples[:, 0]))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        triples = triples[order]
        new = np.ones(len(triples), bool)
        new[1:] = (triples[1:, :2] != triples[:-1, :2]).any(axis=1)
        return Plan(
            headers=tuple(self.headers),
            rows=tuple(self.rows),
            owner=triples[new, 0].astype(np.int32),
            offset=triples[new, 1].astype(np.int32),
            position=(np.cumsum(new) - 1).astype(np.int32),
            target=triples[:, 2].astype(np.int32),
            request_pairs=rank[np.array(pairs, np.int64)].astype(np.int32) if pairs else np.empty(0, np.int32),
            request_start=np.array(starts, np.int64),
            plain_tokens=sum(len(self.sequences[i]) for i, _ in asked),
            deepest=max((len(sequence) for sequence in self.sequences), default=0),
            asked=len(asked),
            cut=cut,
        )


def header_order(plan: Plan) -> Iterator[tuple[int, bool]]:
    """Headers depth first, as (header, True) when it is to be run and (header, False) when nothing needs it any more."""
    children: dict[int, list[int]] = {}
    for number, header in enumerate(plan.headers):
        children.setdefault(header.parent, []).append(number)
    stack = [(number, True) for number in reversed(children.get(-1, []))]
    while stack:
        number, enter = stack.pop()
        yield number, enter
        if enter:
            stack.append((number, False))
            stack.extend((child, True) for child in reversed(children.get(number, [])))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit  # a[:low] equal, a[:high] not
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _join(parts: list[Ints]) -> Ints:
    return np.concatenate(parts).astype(np.int32) if parts else np.empty(0, np.int32)
