"""The methods of a suite, multiplied out: every scheme and every server with its options checked, a way of running, and a label
that is unique and short."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from harness import kv as kv_types
from harness import plugins
from harness.engines import ENGINES
from harness.errors import BadInput, UnknownName
from harness.methods import METHODS, endpoint
from harness.methods.base import Method, Option, resolve_options, running_of, running_values
from harness.spec import MIXTURE, OptionValue, Quantized, Running, Scheme, Served, digest
from harness.suite import kv_axis, labels, mistakes, mixed, options, recipe, repeat, training
from harness.suite.calibration import DEFAULT, CalibrationTexts
from harness.suite.file import KEYS, Calibration, SuiteFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a suite's `methods` name for any of its models: an origin and a way of running. `of`: the model that a server runs,
    '' where the suite has only one. `written`: the options that the suite itself says; `twin`: what tells it from its twins.
    `kept`: its value on the axis `kv`, None where nothing is said. `note`: why it is there, where the suite does not list it.
    `beside`: the label of the choice that it was added for as a control. `recipe`: what its label says of a recipe."""

    origin: Quantized | Served
    running: Running
    label: str
    of: str = ""
    written: frozenset[str] = frozenset()
    twin: str = ""
    kept: kv_axis.Kept | None = None
    note: str = ""
    beside: str = ""
    recipe: str = ""

    def grouped_by(self, group: int) -> Choice:
        """The same choice in groups of another size, with the label that says so."""
        scheme = self.origin.scheme
        scheme = replace(scheme, options={**scheme.options, "group_size": group})
        label = labels.label(METHODS[scheme.method], scheme, self.running, self.kept, self.recipe) + self.twin
        return replace(self, origin=replace(self.origin, scheme=scheme), label=label)

    def with_scheme(self, scheme: Scheme) -> Choice:
        """A control of this choice: another scheme, run in the same way."""
        label = labels.label(METHODS[scheme.method], scheme, self.running, self.kept)
        return replace(self, origin=Quantized(scheme=scheme), label=label, written=frozenset(), twin="", beside=self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry under `methods` or `include`: the values of each option, and where it is written. `own_kv`: it says `kv` itself,
    and does not take the suite's. `mixed`: its bits are targets of mixtures."""

    method: Method
    axes: Mapping[str, Sequence[object]]
    where: str
    own_kv: bool = False
    mixed: bool = False


def choices_of(written: SuiteFile, texts: CalibrationTexts) -> list[Choice]:
    """All choices in suite order. `texts` gets the texts that they are calibrated on."""
    choices: list[Choice] = []
    for entry in _entries(written):
        _check_meaning(entry)
        for values in itertools.product(*entry.axes.values()):
            given = dict(zip(entry.axes, values, strict=True))
            choice = _choice(entry, given, written, texts)
            if _identity(choice) not in map(_identity, choices):
                choices.append(choice)
    choices += _neighbours(written, texts, choices)
    choices += _implied(written, choices)
    choices += training.controls(choices, Choice.with_scheme, _identity)
    return _told_apart(choices)


def _neighbours(written: SuiteFile, texts: CalibrationTexts, choices: Sequence[Choice]) -> list[Choice]:
    """The uniform widths next to each mixture, which it is set beside, where the suite does not list them."""
    found: dict[str, Choice] = {}
    known = {_identity(choice) for choice in choices}
    for entry in (entry for entry in _entries(written) if entry.mixed):
        for values in itertools.product(*entry.axes.values()):
            given = dict(zip(entry.axes, values, strict=True))
            target = _width(given["bits"], entry)
            for bits in mixed.beside(entry.method, target, given):
                plain = mixed.uniform(entry.method, given, bits)
                choice = _choice(replace(entry, mixed=False), plain, written, texts)
                if _identity(choice) not in known:
                    note = f"added, because {entry.method.name} mixed to {target:g} bits is set beside it"
                    found.setdefault(_identity(choice), replace(choice, note=note))
    return list(found.values())


def _implied(written: SuiteFile, choices: Sequence[Choice]) -> list[Choice]:
    """The baseline that the suite names and does not list under `methods`: an unquantized row, which needs no options."""
    method = METHODS.get(written.suite.baseline)
    if method is None or not method.unquantized or any(choice.label == method.name for choice in choices):
        return []
    scheme = Scheme(method=method.name, bits=method.bits[0], options=resolve_options(method, {}, method.bits[0]))
    running = running_of(method, {}, scheme.bits)
    words = kv_axis.axis(written.suite.kv, written.where("kv")) if written.suite.kv is not None else ()
    plain = [word for word in words if not kv_types.quantized(word)][:1]
    kept = kv_axis.kept(words, plain[0], running, method, own=False, where=written.where("kv")) if plain else None
    running = running if kept is None else kv_axis.run_in(running, kept.word)
    label = labels.label(method, scheme, running, kept)
    return [Choice(origin=Quantized(scheme=scheme), running=running, label=label, kept=kept)]


def _check_meaning(entry: Entry) -> None:
    """BadInput for an option that means nothing at any of the widths that the entry asks for."""
    if entry.mixed:
        return
    known = _known(entry)
    widths = [bits for bits in map(_number, entry.axes["bits"]) if bits in entry.method.bits]
    for name in entry.axes:
        option = known.get(name)
        if option is None or option.bits is None or not widths or any(map(option.applies, widths)):
            continue
        asked, meant = (" and ".join(f"{b:g}" for b in some) for some in (widths, option.bits))
        raise BadInput(
            f"{entry.where}: {entry.method.name}: {name} means nothing at {asked} bits; remove it, or ask for {meant} bits too"
        )


def check_served_models(written: SuiteFile, choices: Sequence[Choice], names: Sequence[str]) -> None:
    """Every server's cell belongs to one of the models `names`: whose tokenizer it is asked with."""
    for choice in choices:
        if not isinstance(choice.origin, Served):
            continue
        place = written.where("methods", choice.origin.scheme.method)
        if choice.of and choice.of not in names:
            raise UnknownName("model (of)", choice.of, names, place)
        if not choice.of and len(names) > 1:
            raise BadInput(f"{place}: the suite has several models; say which one {choice.label!r} serves: of: {names[0]}")


def unset_tokens(choices: Sequence[Choice]) -> list[str]:
    """A line for each environment variable that holds a server's token, and is not set here."""
    named = {c.origin.token_env: c.label for c in choices if isinstance(c.origin, Served) and c.origin.token_env}
    return [
        f"{label}: its token is asked for in ${name}, which is not set here; export it before `run`"
        for name, label in named.items()
        if not os.environ.get(name, "").strip()
    ]


def started(choices: Sequence[Choice]) -> list[str]:
    """A line for each command that `run` would start."""
    commands = {c.label: c.origin.serve for c in choices if isinstance(c.origin, Served) and c.origin.serve}
    return [
        f"{label}: `run` starts a program, where QUANT_HARNESS_SERVE=1 permits it: {' '.join(command.split())}"
        for label, command in commands.items()
    ]


def _identity(choice: Choice) -> str:
    return digest([choice.origin.identity(), choice.running, choice.of])


def _entries(written: SuiteFile) -> Iterator[Entry]:
    """The suite's `methods` and `include`, without those whose cells follow from the models."""
    grids: list[tuple[str, Mapping[str, object], str]] = []
    for name, entry in written.suite.methods.items():
        if entry == []:
            raise BadInput(
                f"{written.where('methods', name)}: {name}: [] is an empty list, so it has no cell; write {name}: {{}}"
            )
        if isinstance(entry, list):
            grids += [(name, grid, written.where("methods", name, index)) for index, grid in enumerate(entry)]
        else:
            grids.append((name, entry or {}, written.where("methods", name)))
    for index, extra in enumerate(written.suite.include):
        where = written.where("include", index)
        if "method" not in extra:
            raise BadInput(f"{where}: an included cell names its method: include: [{{method: gptq, bits: 4}}]")
        mixed.one_of_both(extra, where)
        grids.append((str(extra["method"]), {k: v for k, v in extra.items() if k != "method"}, where))
    for name, grid, where in grids:
        if name not in METHODS:
            raise plugins.unknown("method", name, where)
        method = METHODS[name]
        if method.origin != "given":
            axes = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
            if empty := [key for key, values in axes.items() if not values]:
                raise BadInput(
                    f"{where}: {name}: {empty[0]}: [] is an empty list, so the method has no cell; name a value, or take "
                    f"`{empty[0]}` out"
                )
            _check_engines(method, axes.get(ENGINE, ()), where)
            recipe.check(method, axes, where)
            for own, is_mixed in mixed.parts(method, repeat.expanded(method, axes, written, where), where):
                with_bits = own if is_mixed else _with_bits(method, own, written.suite.bits, where)
                with_kv = _with_kv(method, with_bits, written, where)
                yield Entry(method=method, axes=with_kv, where=where, own_kv="kv" in grid, mixed=is_mixed)
        else:
            _check_given(method, grid, where)


def _with_bits(
    method: Method, axes: Mapping[str, Sequence[object]], bits: Sequence[float] | None, where: str
) -> dict[str, Sequence[object]]:
    """The axes with the bit widths: as said (and checked), or the suite's, or all that the method offers."""
    asked = axes.get("bits")
    if (said := recipe.bits(method, axes, where)) is not None:
        return {**axes, "bits": said}
    if method.origin == "served":
        for width in asked or ():
            if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 <= width <= 32:
                raise BadInput(
                    f"{where}: {method.name}: bits: {mistakes.shown(width)} is no bit width; leave it out where it is not known"
                )
        return {**axes, "bits": asked if asked is not None else [0.0]}
    for width in asked or ():
        if isinstance(width, str) and (meant := mistakes.bits_meant(width)) is not None:
            raise BadInput(f"{where}: {method.name}: bits: {width!r} is a text and no number; write bits: {meant}")
        if not any(options.same(width, b) for b in method.bits):
            offered = ", ".join(f"{b:g}" for b in method.bits)
            raise BadInput(
                f"{where}: {method.name} does not offer {mistakes.shown(width)} bits; it offers {offered}: "
                f"write bits: [{offered}]"
            )
    if asked is not None:
        return dict(axes)
    return {**axes, "bits": list(method.bits if method.unquantized or bits is None else bits)}


def _with_kv(method: Method, axes: Mapping[str, Sequence[object]], written: SuiteFile, where: str) -> dict[str, Sequence[object]]:
    """The axes with the words of `kv`: the entry's own, or the suite's, which are not those of a server: it has chosen."""
    own, suite = axes.get("kv"), written.suite.kv
    if own is None and (suite is None or method.origin == "served"):
        return dict(axes)
    if "kv_cache" in axes:
        raise BadInput(f"{where}: {method.name}: kv and kv_cache say the same; keep kv")
    return {**axes, "kv": kv_axis.axis(list(own), where) if own is not None else kv_axis.axis(suite, written.where("kv"))}


def _choice(entry: Entry, given: Mapping[str, object], written: SuiteFile, texts: CalibrationTexts) -> Choice:
    """One choice with its options checked. `texts` gets the text that it is calibrated on."""
    method, where, bits = entry.method, entry.where, _width(given["bits"], entry)
    engine = str(given.get(ENGINE, method.engine))
    apart = {"bits", "calibration", training.OPTION, "kv", ENGINE, *mixed.KEYS, recipe.key_of(method)}
    values = _checked({k: v for k, v in given.items() if k not in apart}, entry)
    flags = labels.flags_of(method, engine)
    known = {**method.options, **flags}
    values = {name: value for name, value in values.items() if name in known and (entry.mixed or known[name].applies(bits))}
    own = {name: value for name, value in values.items() if name in method.options}
    settled, running = resolve_options(method, own, bits), running_of(method, values, bits, engine=engine, flags=flags)
    _check_values(known, method, {**settled, **running_values(running)}, where)
    kept = _kept(entry, given, running)
    if kept is not None:
        running = kv_axis.run_in(running, kept.word)
    training.check(method, given, where)
    if not method.calibrated and "calibration" in given and not entry.mixed:
        raise BadInput(f"{where}: {method.name} takes no calibration data; remove `calibration`")
    if method.origin == "served":
        try:
            server = endpoint.origin(settled, bits)
        except BadInput as error:
            raise BadInput(f"{where}: {method.name}: {error}") from None
        label = str(settled["name"]) or endpoint.label(server)
        return Choice(origin=server, running=running, label=label, of=str(settled["of"]))
    made = recipe.applied(method, Scheme(method=method.name, bits=bits, options=settled), given, written, where)
    scheme = _scheme(entry, given, made.scheme, written, texts)
    return Choice(
        origin=Quantized(scheme=scheme),
        running=running,
        label=labels.label(method, scheme, running, kept, made.words),
        written=frozenset(values),
        kept=kept,
        recipe=made.words,
    )


def _scheme(entry: Entry, given: Mapping[str, object], plain: Scheme, written: SuiteFile, texts: CalibrationTexts) -> Scheme:
    """The scheme with what stands beside its options: widths by layer, what it is trained or calibrated on."""
    method, where = entry.method, entry.where
    scheme = mixed.scheme(method, plain, given, where) if entry.mixed else plain
    if method.trains is not None:
        return training.trained(scheme, given.get(training.OPTION), written, texts, where)
    if not method.calibrated and not entry.mixed:
        return scheme
    wish = _calibration(given.get("calibration"), written, where)
    if not entry.mixed and not method.sees_text(scheme):
        return scheme
    text = DEFAULT if wish.corpus is None else texts.named(wish.corpus, _corpus_place(given, written, where))
    return replace(scheme, options={**scheme.options, "calibration": {**wish.model_dump(), "corpus": text}})


def _kept(entry: Entry, given: Mapping[str, object], running: Running) -> kv_axis.Kept | None:
    if "kv" not in given:
        return None
    words = [str(word) for word in entry.axes["kv"]]
    return kv_axis.kept(words, str(given["kv"]), running, entry.method, own=entry.own_kv, where=entry.where)


def _number(value: object) -> float | None:
    """A bit width as written, or None for what is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _width(bits: object, entry: Entry) -> float:
    if not isinstance(bits, (int, float)) or isinstance(bits, bool):
        raise BadInput(f"{entry.where}: {entry.method.name}: bits: {mistakes.shown(bits)} is no bit width")
    return float(bits)


def _checked(values: Mapping[str, object], entry: Entry) -> dict[str, OptionValue]:
    """The values as options of the method and of the entry's engines. UnknownName for an option that none has, BadInput for a
    value of the wrong kind."""
    method, where, known = entry.method, entry.where, _known(entry)
    checked: dict[str, OptionValue] = {}
    for name, value in values.items():
        if name not in known:
            more = [
                "bits",
                "kv",
                *([TEXTS[method.trains is not None]] * method.calibrated),
                *([ENGINE] if method.engines else []),
            ]
            more += [repeat.KEY] * method.calibrated
            more += mixed.KEYS if method.mixing is not None else ()
            more += [recipe.key_of(method)] if method.recipe is not None else ()
            raise UnknownName(f"option of {method.name}", name, [*known, *more], where)
        try:
            checked[name] = options.value(known[name], name, value)
        except ValueError as error:
            raise BadInput(f"{where}: {method.name}: {error}") from None
    return checked


TEXTS = ("calibration", training.OPTION)
"""The key of the rows that a method sees: of one that only looks at them, and of one that trains on them."""


def _check_values(known: Mapping[str, Option], method: Method, values: Mapping[str, OptionValue], where: str) -> None:
    """BadInput for a value, a default too, that the option's own check refuses."""
    for name, option in known.items():
        why = None if option.check is None else option.check(values[name])
        if why is not None:  # the value is not repeated: it may be a secret that went to the wrong place
            raise BadInput(f"{where}: {method.name}: {name}: {why}")


ENGINE = "engine"
"""The key that says in which engines a method's artifacts run: `engine: [transformers, vllm]`. It multiplies cells as bits do,
and the artifact is made once."""


def _check_engines(method: Method, names: Sequence[object], where: str) -> None:
    """BadInput for an engine that does not run what the method writes."""
    for name in names:
        if name != method.engine and name not in method.engines:
            takes = ", ".join([method.engine, *method.engines])
            raise BadInput(
                f"{where}: {method.name}: engine: {mistakes.shown(name)} does not run what {method.name} writes; it takes {takes}"
            )


def _check_given(method: Method, grid: Mapping[str, object], where: str) -> None:
    """BadInput for what cannot be said of given checkpoints: anything but the engines that they run in, and their settings
    there."""
    named = grid.get(ENGINE, [])
    engines = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    if not engines and ENGINE in grid:
        raise BadInput(f"{where}: {method.name}: engine: [] is an empty list, so the checkpoint has no cell; name an engine")
    _check_engines(method, engines, where)
    flags = {name: option for engine in engines for name, option in labels.flags_of(method, engine).items()}
    for name, value in grid.items():
        if name == ENGINE:
            continue
        others = [engine for engine in method.engines if name in ENGINES[engine].flags]
        if name not in flags and others:
            raise BadInput(
                f"{where}: {method.name}: {name} is a setting of {others[0]}; add engine: [{method.engine}, {others[0]}]"
            )
        if name not in flags:
            also = "; only `engine` and an engine's settings can be said of it" if method.engines else ""
            raise BadInput(f"{where}: {method.name} takes no options: its scheme is read from the checkpoint's config.json{also}")
        if isinstance(value, list):
            raise BadInput(f"{where}: {method.name}: {name}: a given checkpoint runs in one way in each engine; write one value")
        try:
            meant = options.value(flags[name], name, value)
        except ValueError as error:
            raise BadInput(f"{where}: {method.name}: {error}") from None
        _check_values({name: flags[name]}, method, {name: meant}, where)


def _known(entry: Entry) -> dict[str, Option]:
    """All that a suite may write in this entry, whatever it decides: a flag of any of its engines."""
    flags = [labels.flags_of(entry.method, str(name)) for name in entry.axes.get(ENGINE, [entry.method.engine])]
    return {**entry.method.options, **{name: option for each in flags for name, option in each.items()}}


def _calibration(given: object, written: SuiteFile, where: str) -> Calibration:
    """The option `calibration`: the suite's with what the method's own entry changes of it."""
    if given is not None and not isinstance(given, dict):
        raise BadInput(f"{where}: calibration: {mistakes.shown(given)} is no mapping; write calibration: {{samples: 128}}")
    try:
        return Calibration.model_validate({**written.suite.calibration.model_dump(), **(given or {})})
    except ValidationError as error:
        wrong = mistakes.below(("calibration",), error.errors(), {"calibration": given}, keys=KEYS)
        raise BadInput("\n".join(f"{where}: {sentence}" for sentence in wrong)) from None


def _corpus_place(given: Mapping[str, object], written: SuiteFile, where: str) -> str:
    """Where the text is named that a choice is calibrated on: in the method's own entry, or in the suite's `calibration`."""
    own = given.get("calibration")
    return where if isinstance(own, dict) and "corpus" in own else written.where("calibration", "corpus")


def _told_apart(choices: Sequence[Choice]) -> list[Choice]:
    """The choices with labels that differ: each of several twins gets the values in which they differ, those of its calibration
    in short."""
    named = []
    for choice in choices:
        twins = [_values(c) for c in choices if c.label == choice.label]
        own = _values(choice)
        differing = {name for twin in twins for name in (*own, *twin) if len({str(t.get(name)) for t in twins}) > 1}
        said = [
            f"{name}={labels.short(own[name])}" for name in sorted(differing) if name in own and not name.startswith(_CALIBRATION)
        ]
        said += _rows_in_short(own, differing)
        twin = "".join(f" {words}" for words in said)
        named.append(replace(choice, label=choice.label + twin, twin=twin))
    return named


_CALIBRATION = "calibration "


def _rows_in_short(own: Mapping[str, object], differing: Collection[str]) -> list[str]:
    """`on reference`, `16x256`, `seed 1`: of the calibration rows what tells twins apart. Of one without them: `uncalibrated`."""
    asked = {name.removeprefix(_CALIBRATION) for name in differing if name.startswith(_CALIBRATION)}
    rows = {name.removeprefix(_CALIBRATION): value for name, value in own.items() if name.startswith(_CALIBRATION)}
    if not asked or not rows:
        return ["uncalibrated"] if asked else []
    said = [f"on {rows['corpus']}"] if "corpus" in asked else []
    said += [f"{rows['samples']}x{rows['length']}"] if asked & {"samples", "length"} else []
    said += [f"seed {rows['seed']}"] if "seed" in asked else []
    return said + [
        f"{name}={labels.short(rows[name])}" for name in sorted(asked - {"corpus", "samples", "length", "seed"}) if name in rows
    ]


def _values(choice: Choice) -> dict[str, object]:
    """What decides a choice, by the names that a suite uses."""
    values: dict[str, object] = {**choice.origin.scheme.options, **running_values(choice.running)}
    values.pop(MIXTURE, None)
    values |= choice.origin.scheme.mixture or {}
    values |= training.values(values)
    calibration = values.pop("calibration", None)
    if isinstance(calibration, Mapping):
        values |= {f"{_CALIBRATION}{name}": value for name, value in calibration.items()}
    if isinstance(choice.origin, Served):
        values |= {"url": choice.origin.url, "model": choice.origin.model, "of": choice.of}
        values |= {"serve": choice.origin.serve, "artifact": choice.origin.artifact} if choice.origin.serve else {}
    return values
