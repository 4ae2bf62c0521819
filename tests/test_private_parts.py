"""What the harness uses of other libraries that they do not promise to keep: each part is named here, and is still there."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.methods import METHODS

ROOT = Path(__file__).parents[1]

PARTS = {
    "lm_eval.api.model.TemplateLM._encode_pair": "cuts a text into context and continuation ids",
    "lm_eval.api.task.Task:_instances": "a part of a task's items is asked",
    "lm_eval.api.task.Task.build_all_requests": "requests are built once, and not again by `evaluate`",
    "lm_eval.api.task.Task.doc_iterator": "a part of a task's items is asked",
    "lm_eval.defaults.DEFAULT_OTHER_SEED": "examples are drawn as lm-eval's own command draws them",
    "lm_eval.defaults.DEFAULT_RANDOM_SEED": "examples are drawn as lm-eval's own command draws them",
    "lm_eval.models.utils.configure_pad_token": "the tokenizer pads as in lm-eval's `hf`",
    "lm_eval.models.utils.handle_stop_sequences": "generation stops as in lm-eval's `hf`",
    "lm_eval.models.utils.has_bos_prefix": "BOS is not put twice, as in lm-eval's `hf`",
    "lm_eval.models.utils.normalize_gen_kwargs": "generation settings are read as in lm-eval's `hf`",
    "lm_eval.models.utils.postprocess_generated_text": "answers are cut as in lm-eval's `hf`",
    "lm_eval.models.utils.resolve_max_length": "the longest input is that of lm-eval's `hf`",
    "lm_eval.tasks._index.TaskIndex.process_cfg": "only the task files that are needed are indexed",
    "lm_eval.utils.env": "templates are compiled once, foreign ones in a sandbox",
    "transformers.utils.chat_template_utils.datetime": "chat templates that ask for the date are told that of the run",
    "transformers.PreTrainedConfig._attn_implementation": "which attention runs, for the facts and the noise floor",
    "transformers.PreTrainedModel._adjust_missing_and_unexpected_keys": "stored tensors that a class ignores are named",
    "transformers.PreTrainedModel._tied_weights_keys": "tied weights are drawn once in a model of random weights",
    "transformers.modeling_utils.PreTrainedModel:_is_hf_initialized": "layers without weights stay empty",
    "transformers.cache_utils.DynamicLayer.lazy_initialization": "a prefix's keys and values serve many rows",
    "transformers.conversion_mapping.get_checkpoint_conversion_mapping": "renaming rules are built once, before forking",
    "scipy.special._ufuncs._binom_cdf": "the binomial without scipy.stats, whose import takes longer than a report",
    "scipy.special._ufuncs._binom_pmf": "likewise",
    "scipy.special._ufuncs._binom_ppf": "likewise",
    "scipy.special._ufuncs._binom_sf": "likewise",
    "torch.utils._python_dispatch.TorchDispatchMode": "matrix products are taken another way on some CPUs",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default": "attention's products are widened",
    "torch.ops.aten._convert_weight_to_int4pack_for_cpu.default": "the codes of int4 weights are seen as they are packed",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "whether the CPU has units for bfloat16",
    "torch.ops.mkldnn._is_mkldnn_fp16_supported": "whether the CPU has units for float16",
    "torch.ops.mkldnn._linear_pointwise": "oneDNN multiplies where MKL leaves units idle",
    "gptqmodel.looper.awq_processor.AWQProcessor._compute_best_clip": "AWQ's clip search runs in constant memory",
    "gptqmodel.looper.awq_processor.AWQProcessor._compute_best_scale": "AWQ's scale search restores float32 weights",
    "optimum.quanto.library.extensions.extension.Extension:_lib": "quanto unpacks without compiling at first use",
    "optimum.quanto.QBytesTensor:_data": "the codes of an 8-bit quanto weight",
    "optimum.quanto.tensor.packed.PackedTensor:_data": "the packed codes of a quanto weight",
}
"""Name -> what depends on it. `Owner:name` is set on objects: it is looked for in the source of the class."""

ELSEWHERE = {"auto_gptq": "autogptq", "awq": "autoawq"}
"""Packages that live in environments of their own, by the method that pins them there to one version."""

DISTRIBUTIONS = {"lm_eval": "lm-eval", "optimum": "optimum-quanto"}
"""Distributions whose name is not the package's."""


def resolve(path: str) -> object:
    """The object of a name. LookupError says in words which part of it is gone."""
    dotted, _, on_objects = path.partition(":")
    names = dotted.split(".")
    here: object = importlib.import_module(names[0])
    for depth, name in enumerate(names[1:], 1):
        if not hasattr(here, name):
            try:
                importlib.import_module(".".join(names[: depth + 1]))
            except ImportError:
                raise LookupError(f"{'.'.join(names[:depth])} has no {name!r} any more") from None
        here = getattr(here, name)
    if on_objects:
        tree = ast.parse(inspect.getsource(here))  # type: ignore[arg-type]
        if not any(isinstance(n, ast.Attribute) and n.attr == on_objects for n in ast.walk(tree)):
            raise LookupError(f"{dotted} has no attribute {on_objects!r} any more")
    return here


def gone(paths: Iterable[str]) -> dict[str, str]:
    """What is wrong with each of these names, where something is."""
    problems = {}
    for path in paths:
        try:
            resolve(path)
        except LookupError as error:
            problems[path] = str(error)
    return problems


@pytest.fixture(scope="module")
def problems() -> dict[str, str]:
    """Asked in a process of its own: some of these packages change others when they are imported."""
    here = [path for path in PARTS if importlib.util.find_spec(path.partition(".")[0]) is not None]
    code = "import json, sys; from tests.test_private_parts import gone; print('\\n' + json.dumps(gone(sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *here], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("path", PARTS)
def test_a_private_part_that_the_harness_uses_is_there(path: str, problems: dict[str, str]) -> None:
    package = path.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here")
    if path in problems:
        name = DISTRIBUTIONS.get(package, package)
        version = importlib.metadata.version(name)
        pytest.fail(f"{name} {version}: {problems[path]}. The harness needs it: {PARTS[path]}. Mend that, or bound the version")


def test_a_part_that_is_gone_is_named() -> None:
    names = ["lm_eval.tasks._index.TaskList.process_cfg", "lm_eval.api.task.Task:_requests_of_old", *list(PARTS)[:1]]
    assert list(gone(names).values()) == [
        "lm_eval.tasks._index has no 'TaskList' any more",
        "lm_eval.api.task.Task has no attribute '_requests_of_old' any more",
    ]


def private_uses() -> dict[str, set[str]]:
    """Private names that harness/ uses on what is not its own object, each with the files that do."""
    uses: dict[str, set[str]] = {}
    for path in sorted((ROOT / "harness").rglob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()"):
                names.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith(("harness", "__")):
                names |= {*str(node.module).split("."), *(alias.name for alias in node.names)}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
                names |= {str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant)}
        for name in names:
            if name.startswith("_") and not name.startswith("__"):
                uses.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return uses


def test_every_private_name_that_the_harness_uses_is_listed_here() -> None:
    listed = {name for path in PARTS for name in path.replace(":", ".").split(".")}
    own_environments = {"harness/methods/autogptq.py", "harness/methods/autoawq.py"}
    python = {"_exit"}  # os._exit is documented
    missing = {
        name: files for name, files in private_uses().items() if name not in listed | python and not files <= own_environments
    }
    assert not missing, f"add them to PARTS, with what depends on them: {missing}"


@pytest.mark.parametrize("method", ELSEWHERE.values())
def test_a_package_that_is_patched_in_its_own_environment_is_pinned_there(method: str) -> None:
    assert any("==" in requirement for requirement in METHODS[method].requirements)


@pytest.mark.parametrize("package", sorted({path.partition(".")[0] for path in PARTS}))
def test_a_package_of_which_private_parts_are_used_has_an_upper_bound(package: str) -> None:
    name = DISTRIBUTIONS.get(package, package)
    (requirement,) = re.findall(rf'"({name}[>=][^"]*)"', (ROOT / "pyproject.toml").read_text())
    assert ",<" in requirement, f"{requirement}: say below which version these parts were seen"
