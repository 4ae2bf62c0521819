"""Methods, engines and probes of other packages: found, listed, run; and left out in one line where they cannot be used."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import plugins, store
from harness.artifact import ModelShape
from harness.child import fork_server
from harness.errors import MissingPackage
from harness.methods import METHODS
from harness.methods.base import LoadRequest
from harness.metrics import METRICS
from harness.plugins import Kind, Plugin
from harness.spec import Quantized, Running, Scheme
from tests.plugin_site import EXAMPLE, call, install_example, offer
from tests.tiny_llama import llama, text, tokenizer

# Loading a tiny model imports parts of torch that use what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

WriteSuite = Callable[..., Path]

HEAD = """
from dataclasses import replace
from harness.methods import fake
from harness.methods.base import Method, Option
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages on this process's path; tables and modules are as before afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    tables = [*plugins.TABLES.values(), METRICS]
    before, modules = [dict(table) for table in tables], set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def row(target: str, *, kind: Kind = "method", name: str = "mine", package: str = "mine-rows") -> Plugin:
    return Plugin(kind=kind, name=name, target=target, package=package, version="1.2")


def refusal(site: Path, code: str, target: str = "mine_rows:METHOD") -> str:
    """Why a method written in `code` is left out, in its one line."""
    (site / "mine_rows.py").write_text(HEAD + code)
    importlib.invalidate_caches()
    known = dict(METHODS)
    loaded = plugins.take([row(target)])
    assert loaded.plugins == ()
    assert known == METHODS
    (refused,) = loaded.refused
    line = str(refused)
    assert line.startswith("the method 'mine' of mine-rows 1.2 is left out: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise RuntimeError('two\\nlines')", "cannot be imported: RuntimeError: two lines"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("def broken(:", "cannot be imported: SyntaxError"),
        ("x = 1", "cannot be imported: AttributeError"),
        ("METHOD = {'name': 'mine'}", "is of the type dict, not harness's Method"),
        ("METHOD = Method(name='mine')", "cannot be imported: TypeError: Method.__init__() missing"),
        ("METHOD = Method(name='mine', colour='red')", "unexpected keyword argument 'colour'"),
        ("METHOD = replace(fake.METHOD, name='mine', bits=('4',))", "`bits` is ('4',), not tuple[float, ...]"),
        ("METHOD = replace(fake.METHOD, name='mine', bits=4)", "`bits` is 4, not tuple[float, ...]"),
        ("METHOD = replace(fake.METHOD, name='mine', load=None)", "`load` is None, not Callable"),
        ("METHOD = replace(fake.METHOD, name='mine', modules='torch')", "`modules` is 'torch', not tuple[str, ...]"),
        ("METHOD = replace(fake.METHOD, name='mine', options={'a': 1})", "`options` is {'a': 1}, not Mapping[str, Option]"),
        ("METHOD = replace(fake.METHOD, name='mine', kernel_cpu={4: 'quick'})", "`kernel_cpu` is {4: 'quick'}"),
        ("METHOD = replace(fake.METHOD, name='mine', bits=())", "`bits` is empty"),
        ("METHOD = replace(fake.METHOD, name='mine', kernel_cuda={16: 'real'})", "`kernel_cuda` has no entry for 8 bits"),
        ("METHOD = replace(fake.METHOD, name='mine', engine='steam')", "there is no engine 'steam'"),
        ("METHOD = replace(fake.METHOD, name='mine', environment='inc')", "environment 'inc' belongs to quant-harness"),
        ("METHOD = replace(fake.METHOD, name='mine', loaded_by='nobody')", "`loaded_by` names no method: 'nobody'"),
        ("METHOD = replace(fake.METHOD, name='mine', extra='hqq')", "`extra` names an extra of quant-harness"),
        ("METHOD = replace(fake.METHOD, name='mine', origin='served')", "are read by quant-harness itself"),
        ("METHOD = replace(fake.METHOD, name='other')", "is named 'other', its entry point 'mine'"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_in_one_line(site: Path, code: str, says: str) -> None:
    assert says in refusal(site, code)


def test_our_own_rows_fit_their_types() -> None:
    assert {name: wrong for t in plugins.TABLES.values() for name, r in t.items() if (wrong := plugins.misfits(r))} == {}


def test_a_name_of_ours_is_refused_and_ours_stays(site: Path) -> None:
    (site / "mine_rows.py").write_text(HEAD + "METHOD = replace(fake.METHOD, name='gptq')")
    gptq = METHODS["gptq"]
    (refused,) = plugins.take([row("mine_rows:METHOD", name="gptq")]).refused
    assert refused.why == "quant-harness has a method of that name itself"
    assert METHODS["gptq"] is gptq


def test_a_name_that_two_packages_offer_is_neithers(site: Path) -> None:
    (site / "mine_rows.py").write_text(HEAD + "METHOD = replace(fake.METHOD, name='mine')")
    loaded = plugins.take([row("mine_rows:METHOD"), row("mine_rows:METHOD", package="theirs")])
    assert loaded.plugins == ()
    assert {r.why for r in loaded.refused} == {
        "mine-rows 1.2 and theirs 1.2 have a method of that name; uninstall all but one of them"
    }
    assert "mine" not in METHODS


def test_an_environment_belongs_to_the_package_that_named_it_first(site: Path) -> None:
    (site / "mine_rows.py").write_text(
        HEAD + "A, B, C = (replace(fake.METHOD, name=n, environment='shared', requirements=('six',)) for n in 'abc')"
    )
    offered = [row("mine_rows:A", name="a"), row("mine_rows:B", name="b"), row("mine_rows:C", name="c", package="theirs")]
    loaded = plugins.take(offered)
    assert [p.name for p in loaded.plugins] == ["a", "b"]
    assert "the environment 'shared' belongs to mine-rows" in loaded.refused[0].why


ENGINE_AND_PROBE = """
from harness.engines import ENGINES
from harness.probes.fake import PROBE as SCRIPTED
from harness.spec import Metric
ENGINE = replace(ENGINES["fake"], name="steam")
METHOD = replace(fake.METHOD, name="mine", engine="steam")
WHEELS = Metric(name="wheels", title="Wheels", unit="1", better="lower", definition="d")
PROBE = replace(SCRIPTED, name="counted", metrics=(WHEELS,))
TAKEN = replace(SCRIPTED, name="taken", metrics=(replace(WHEELS, name="perplexity"),))
"""


def test_engines_and_probes_are_offered_too_and_a_method_may_name_an_engine_of_its_package(site: Path) -> None:
    (site / "mine_rows.py").write_text(HEAD + ENGINE_AND_PROBE)
    loaded = plugins.take(
        [
            row("mine_rows:ENGINE", kind="engine", name="steam"),
            row("mine_rows:METHOD"),
            row("mine_rows:PROBE", kind="probe", name="counted"),
            row("mine_rows:TAKEN", kind="probe", name="taken"),
        ]
    )
    assert [p.name for p in loaded.plugins] == ["steam", "mine", "counted"]
    assert METRICS["wheels"].title == "Wheels"
    assert [r.why for r in loaded.refused] == [
        "mine_rows:TAKEN: there is another metric of the name 'perplexity'; give yours another one"
    ]


def test_a_row_that_a_child_cannot_load_says_why_when_it_is_used_and_harms_nothing_else(site: Path) -> None:
    (site / "mine_rows.py").write_text(HEAD + "import nothing_of_that_name")
    known = set(METHODS)
    why = plugins.from_parent(plugins.for_child([row("mine_rows:METHOD")]))
    assert "No module named 'nothing_of_that_name'" in why["mine_rows"]
    assert set(METHODS) == known | {"mine"}
    with pytest.raises(MissingPackage, match=r"the method 'mine' needs the package 'mine-rows'.*nothing_of_that_name"):
        METHODS["mine"].load(
            LoadRequest(
                artifact_dir=site,
                model_dir=site,
                origin=Quantized(scheme=Scheme(method="mine", bits=4)),
                running=Running(engine="transformers"),
                device="cpu",
            )
        )
    assert plugins.from_parent("") == {}


def test_a_child_gets_the_package_of_a_row_by_itself_and_nothing_that_lies_beside_it(site: Path, tmp_path: Path) -> None:
    made = HEAD + "METHOD = replace(fake.METHOD, name='{}')"
    for name, path in {"file": "one_file.py", "package": "a_package/rows.py", "space": "a_space/inside/rows.py"}.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(made.format(name))
    (site / "a_package" / "__init__.py").write_text("")
    (site / "a_space" / "inside" / "__init__.py").write_text("")
    (site / "beside.py").write_text("")
    offered = [
        row("one_file:METHOD", name="file"),
        row("a_package.rows:METHOD", name="package"),
        row("a_space.inside.rows:METHOD", name="space"),
    ]
    assert len(plugins.take(offered).plugins) == 3
    alone = fork_server.harness_alone(tmp_path / "home", plugins.links(offered))
    assert sorted(p.relative_to(alone).as_posix() for p in alone.rglob("*")) == [
        "a_package",
        "a_space",
        "a_space/inside",
        "harness",
        "one_file.py",
    ]
    assert (alone / "a_package").resolve() == site / "a_package"
    before = plugins.sources(offered)
    assert list(before) == ["mine-rows 1.2"]
    (site / "a_package" / "rows.py").write_text(made.format("package") + "\n# edited")
    assert plugins.sources(offered) != before


# ---- from outside ----


def test_what_is_installed_is_listed_with_its_package_and_what_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    install_example(folder)
    offer(folder, "bad-rows", "0.3", {"methods": {"bad": "bad_rows:METHOD"}}, {"bad_rows.py": "import nothing_of_that_name"})
    offer(folder, "rival-rows", "7", {"methods": {"hqq": "rival_rows:M"}}, {"rival_rows.py": "M = 1"})
    offer(folder, "probe-rows", "2", {"probes": {"counted": "p_rows:PROBE"}}, {"p_rows.py": HEAD + ENGINE_AND_PROBE})
    done = call(folder, "methods", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[-2:] for line in lines if line.split()[:1] == ["absmax"]] == [["absmax-harness", "0.1.0"]]
    assert "probe counted from probe-rows 2" in lines
    assert [line for line in lines if "left out" in line] == [
        "the method 'bad' of bad-rows 0.3 is left out: bad_rows:METHOD cannot be imported: ModuleNotFoundError: No module named "
        "'nothing_of_that_name'",
        "the method 'hqq' of rival-rows 7 is left out: quant-harness has a method of that name itself",
    ]
    rows = json.loads(call(folder, "methods", "--format", "json", cwd=tmp_path).stdout)
    told = {r.get("method", r.get("probe")): (r["state"], r["package"]) for r in rows if r["package"]}
    assert told["absmax"] == ("ready", "absmax-harness 0.1.0")
    assert told["counted"] == ("ready", "probe-rows 2")
    assert told["bad"][0].startswith("left out: ")


def test_help_and_reports_import_no_other_package_and_a_run_says_what_is_left_out(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    folder, mark = tmp_path / "site", tmp_path / "imported"
    offer(folder, "marks", "1", {"methods": {"m": "marks:M"}}, {"marks.py": f"open({str(mark)!r}, 'a').write('x')"})
    ran = call(folder, "run", write_suite("{bits: 4}"), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert mark.exists()
    assert "the method 'm' of marks 1 is left out: marks:M cannot be imported: AttributeError" in ran.stdout
    mark.unlink()
    for arguments in (["--help"], ["methods", "--help"], ["report", "results/scripted"], ["results", "results/scripted"]):
        done = call(folder, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not mark.exists(), arguments


@pytest.mark.parametrize("name", ["os:system", "absmax_harness:METHOD", "absmax-harness", "absmax_harness", "../absmax"])
def test_a_suite_names_rows_and_nothing_else_that_is_installed(write_suite: WriteSuite, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "site"
    install_example(folder)
    done = call(folder, "plan", write_suite(extra=f"  '{name}': {{bits: 8}}"), cwd=tmp_path)
    assert done.returncode == 2
    assert f"unknown method '{name}'" in done.stderr


def test_a_suite_that_names_a_row_that_is_left_out_is_told_why(write_suite: WriteSuite, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    offer(folder, "bad-rows", "0.3", {"methods": {"bad": "bad_rows:METHOD"}}, {"bad_rows.py": "import nothing_of_that_name"})
    done = call(folder, "plan", write_suite(extra="  bad: {bits: 8}"), cwd=tmp_path)
    assert done.returncode == 2
    assert "the method 'bad' of bad-rows 0.3 is left out" in done.stderr
    assert "Traceback" not in done.stderr


# ---- the example ----


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example") / "source"
    llama(dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder.parent / "text.txt").write_text(text(60))
    return folder


def test_the_example_is_one_short_file() -> None:
    (module,) = EXAMPLE.glob("*.py")
    assert len(module.read_text().splitlines()) < 60


def test_the_example_runs_on_its_packed_weights_and_its_numbers_are_those_of_rounding_by_hand(
    source: Path, tmp_path: Path
) -> None:
    install_example(tmp_path / "site")
    suite = tmp_path / "example.yaml"
    suite.write_text(
        f"name: example\nmodels: [{{path: {source}, name: tiny}}]\nmethods: {{bf16: , absmax: }}\n"
        f"corpora: [{{path: {source.parent / 'text.txt'}, window: 64}}]\nprobes: [quantize, size, perplexity, divergence]\n"
    )
    done = call(tmp_path / "site", "run", suite, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = store.read(tmp_path / "results" / "example")
    answers = {r.question.probe: r for r in stored.records if r.cell.scheme.method == "absmax"}
    assert {r.status for r in stored.records} == {"ok"}
    values = {m.metric: m.value for r in answers.values() if r.answer for m in r.answer.measurements}
    model = llama(dtype=torch.bfloat16)
    weights = [module.weight for name, module in model.named_modules() if "proj" in name and isinstance(module, torch.nn.Linear)]
    count, channels = sum(w.numel() for w in weights), sum(len(w) for w in weights)
    assert values["bpw_quantized"] == pytest.approx(8 + 32 * channels / count)
    assert values["perplexity"] == pytest.approx(by_hand(model, weights, source), rel=1e-3)
    assert 0 < values["kl_mean"] < 1e-2
    assert answers["perplexity"].answer is not None
    engine = answers["perplexity"].answer.facts["engine"]
    assert engine["kernels"] == {"Absmax · aten::linear · int8": len(weights)}
    assert list(stored.header.context.plugins) == ["absmax-harness 0.1.0"]


def by_hand(model: torch.nn.Module, weights: list[torch.Tensor], source: Path) -> float:
    """Perplexity on the whole windows of the text, after each row of each weight is rounded to 127ths of its largest value."""
    with torch.no_grad():
        for weight in weights:
            step = weight.float().abs().amax(dim=1, keepdim=True) / 127
            weight.copy_((weight.float() / step).round() * step)
        ids = tokenizer()((source.parent / "text.txt").read_text()).input_ids
        windows = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
        logits = model(input_ids=windows).logits.float()[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    return math.exp(float(nll))


def test_the_example_takes_no_checkpoint_that_is_quantized_already(site: Path) -> None:
    install_example(site)
    assert plugins.take([row("absmax_harness:METHOD", name="absmax")]).refused == ()
    shape = ModelShape(architecture="L", parameters=1, linears=(), hidden=1, layers=1, vocab=1, tied=False, dtype="bf16")
    quantized = replace(shape, config={"quantization_config": {}})
    supports = METHODS["absmax"].supports
    assert supports(Scheme(method="absmax", bits=8), shape, "cpu") is None
    assert supports(Scheme(method="absmax", bits=8), quantized, "cpu") == "it is quantized already"


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="the example's build tool is not here")
def test_pip_builds_the_example_as_this_test_installs_it(tmp_path: Path) -> None:
    install_example(tmp_path / "ours")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--target", str(tmp_path / "theirs"), str(EXAMPLE)], check=True, capture_output=True, timeout=300)

    def found(folder: Path) -> dict[str, str]:
        entry_points = next(folder.glob("*.dist-info")) / "entry_points.txt"
        return {"points": entry_points.read_text().strip(), "code": (folder / "absmax_harness.py").read_text()}

    assert found(tmp_path / "theirs") == found(tmp_path / "ours")
