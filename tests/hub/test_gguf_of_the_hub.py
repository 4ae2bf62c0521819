"""GGUF files by repository and file name: one of many, parts together, their headers alone for a plan."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import BadInput
from harness.formats import gguf_reader
from tests.hub.server import Hub
from tests.hub.world import User, checkpoint
from tests.tiny_llama import llama, text, tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed: pip install -e '.[gguf]'"),
]
llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama_cpp is not installed")


def written(folder: Path, name: str, *, parts: int = 1) -> dict[str, bytes]:
    """A GGUF file of two layers of 64 units, in Q8_0; its files by name."""
    import gguf

    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama", split_max_tensors=-(-3 // parts) if parts > 1 else 0)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_file_type(7)
    writer.add_token_list([f"token {n}" * 40 for n in range(5000)])  # a header of more than one block
    blocks = np.zeros((64, 68), dtype=np.uint8)
    for layer in range(3):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {path.name: path.read_bytes() for path in folder.glob(f"{name}*.gguf")}


def suite(user: User, entry: str, name: str = "mine") -> Path:
    return user.suite(f"[{{repo: lab/tiny, name: tiny}}, {entry}]", name=name)


def test_plan_reads_type_and_bytes_from_the_header_of_one_file_of_many(user: User, hub: Hub, tmp_path: Path) -> None:
    hub.model("lab/tiny").commit(checkpoint())
    files = {**written(tmp_path / "a", "tiny.Q8_0"), **written(tmp_path / "b", "tiny.Q8_0-other"), "README.md": b"-"}
    name = "tiny.Q8_0.gguf"
    files[name] += b"\0" * (4 << 20)  # so that the header is a small part of it
    commit = hub.model("lab/tiny-GGUF").commit(files)
    (cell,) = user.planned(suite(user, f"{{repo: lab/tiny-GGUF, file: {name}, of: tiny}}"))[2:]
    described = cell["cell"]
    assert isinstance(described, dict)
    assert (described["label"], described["model"]["name"]) == (f"{name} gguf Q8_0", "tiny")
    assert described["origin"]["checkpoint"]["commit"] == commit
    assert cell["estimated_bytes"] == 3 * 64 * 68
    fetched = [r.range or "all" for r in hub.sent(name)]
    assert fetched
    assert "all" not in fetched
    assert not list(user.hub_cache.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("file: tiny.Q8.gguf, of: tiny", "unknown file of lab/tiny-GGUF 'tiny.Q8.gguf'; did you mean 'tiny.Q8_0.gguf'"),
        ("file: tiny.Q8_0.gguf", "is a GGUF file, which is asked with the tokenizer of the model that it was made of"),
        ("file: part-00002-of-00002.gguf, of: tiny", "is a part of a model; name its first one: part-00001-of-00002.gguf"),
        (
            "file: part-00001-of-00002.gguf, of: tiny",
            "lacks parts of part-00001-of-00002.gguf: part-00002-of-00002.gguf",
        ),
        ("of: tiny", "holds GGUF files (part-00001-of-00002.gguf, tiny.Q8_0.gguf); name one of them with `file`"),
    ],
)
def test_a_mistake_in_naming_the_file_is_one_sentence(entry: str, sentence: str, user: User, hub: Hub, tmp_path: Path) -> None:
    hub.model("lab/tiny").commit(checkpoint())
    files = written(tmp_path / "a", "tiny.Q8_0")
    hub.model("lab/tiny-GGUF").commit({**files, "part-00001-of-00002.gguf": b"GGUF"})
    if "00002-of" in entry:
        hub.model("lab/tiny-GGUF").commit({**files, "part-00001-of-00002.gguf": b"GGUF", "part-00002-of-00002.gguf": b"GGUF"})
    said = user.harness("plan", str(suite(user, f"{{repo: lab/tiny-GGUF, {entry}}}")), code=2)
    assert sentence in said
    assert len(said.splitlines()) == 1, said


def test_a_file_of_another_model_is_refused_by_plan(user: User, hub: Hub, tmp_path: Path) -> None:
    plain = checkpoint()
    config = json.loads(plain["config.json"]) | {"num_hidden_layers": 3}
    hub.model("lab/tiny").commit({**plain, "config.json": json.dumps(config).encode()})
    hub.model("lab/tiny-GGUF").commit(written(tmp_path / "a", "tiny.Q8_0"))
    said = user.harness("plan", str(suite(user, "{repo: lab/tiny-GGUF, file: tiny.Q8_0.gguf, of: tiny}")), code=2)
    assert "has 2 layers and the model it is given as a quantization `of` has 3: it was made of another one; correct `of`" in said


@pytest.mark.parametrize(("layers", "refused"), [(3, True), (2, False)])
def test_a_file_is_held_against_its_model_again_once_that_is_fetched(
    layers: int, refused: bool, user: User, hub: Hub, tmp_path: Path
) -> None:
    """The connection is lost while `plan` looks, so that the model's shape is not known, and comes back when `run` fetches it."""
    plain = checkpoint()
    config = json.loads(plain["config.json"]) | {"num_hidden_layers": layers}
    hub.model("lab/tiny").commit({**plain, "config.json": json.dumps(config).encode()})
    (file,) = written(tmp_path / "a", "tiny.Q8_0")
    path = suite(user, f"{{path: {tmp_path / 'a' / file}, name: mine, of: tiny}}")
    said = user.python(f"""
from pathlib import Path
from huggingface_hub import constants
from harness.models import hub
from harness.run import identity
from harness.suite import matrix
commit = hub.commit("lab/tiny", None, what="model 'tiny'")
hub.one(hub.Snapshot(repo="lab/tiny", commit=commit), "config.json", what="")  # the cache knows which commit main is
constants.HF_HUB_OFFLINE = True
made = matrix.plan(Path({str(path)!r}), device="cpu", cache=Path("cache"))
print([cell.cell.label for cell in made.cells if cell.cell.origin.kind == "given"])
constants.HF_HUB_OFFLINE = False
print(sorted(identity.gather(made, Path("cache")).weights))
""")
    planned, gathered = said.splitlines()
    assert planned == "['mine gguf Q8_0']"
    if refused:
        assert gathered.startswith("error: 'mine' has 2 layers and the model it is given as a quantization `of` has 3")
        assert gathered.endswith("correct `of`")
    else:
        assert gathered == "['mine', 'tiny']"


def test_a_file_in_parts_is_read_whole_and_a_missing_or_renamed_part_is_named(tmp_path: Path) -> None:
    names = sorted(written(tmp_path / "parts", "tiny", parts=3))
    assert names == [f"tiny-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    first = tmp_path / "parts" / names[0]
    (whole,) = written(tmp_path / "whole", "tiny")
    assert {t.name for t in gguf_reader.header(first).tensors} == {
        t.name for t in gguf_reader.header(tmp_path / "whole" / whole).tensors
    }
    link = tmp_path / "model.gguf"  # as an artifact names it
    link.symlink_to(first)
    assert [part.name for part in gguf_reader.parts(link)] == names
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(first.read_bytes())
    with pytest.raises(BadInput, match="is the first of 3 parts"):
        gguf_reader.header(renamed)
    (tmp_path / "parts" / names[2]).unlink()
    with pytest.raises(BadInput, match=r"of its 3 parts are missing: tiny-00003-of-00003\.gguf"):
        gguf_reader.header(first)


@llama_cpp
@pytest.mark.slow
def test_a_file_in_parts_is_fetched_whole_and_answers_as_the_file_in_one(user: User, hub: Hub, tmp_path: Path) -> None:
    """Real parts: llama.cpp writes the file, llama.cpp's loader reads its parts."""
    model = tmp_path / "model"
    llama(dtype=torch.bfloat16).save_pretrained(model)
    tokenizer().save_pretrained(model)
    hub.model("lab/llama").commit({p.name: p.read_bytes() for p in model.iterdir()})
    one = quantized(model, tmp_path)
    parts = split(one, tmp_path / "split")
    hub.model("lab/llama-GGUF").commit({"llama.gguf": one.read_bytes(), **{f"Q4/{n}": d for n, d in parts.items()}})
    (user.folder / "text.txt").write_text(text(60))
    (user.folder / "mine.yaml").write_text(
        "name: mine\nmethods: {bf16: }\nprobes: [perplexity, size]\ncorpora: [{path: text.txt, window: 64}]\nmodels:\n"
        "  - {repo: lab/llama, name: llama}\n"
        "  - {repo: lab/llama-GGUF, file: llama.gguf, name: one, of: llama}\n"
        f"  - {{repo: lab/llama-GGUF, file: Q4/{min(parts)}, name: parts, of: llama}}\n"
    )
    said = user.harness("run", "mine.yaml", code=0)
    records = user.records()
    assert [r.failure for r in records] == [None] * 6, said
    values = {
        (r.cell.label.split()[0], m.metric): m.value for r in records if r.answer is not None for m in r.answer.measurements
    }
    assert values["parts", "file_bytes"] == sum(map(len, parts.values()))
    for metric in {metric for label, metric in values if label == "one"} - {"file_bytes"}:
        assert values["parts", metric] == values["one", metric], metric
    assert ("one", "perplexity") in values


def quantized(model: Path, tmp_path: Path) -> Path:
    """The model in Q4_0, as the method `gguf` writes it."""
    from typing import Any

    from harness.methods import METHODS, gguf
    from harness.methods.base import QuantizeRequest, resolve_options
    from harness.spec import Quantized, Scheme

    method, out = METHODS["gguf"], tmp_path / "out"
    out.mkdir()
    scheme = Scheme(method="gguf", bits=4.0, options=resolve_options(method, {"type": "Q4_0"}, 4.0))
    request: Any = QuantizeRequest(
        model_dir=model, out_dir=out, origin=Quantized(scheme=scheme), calibration=[[5] * 64] * 2, device="cpu", seed=0
    )
    method.quantize(request)
    return out / gguf.FILE


def split(file: Path, folder: Path) -> dict[str, bytes]:
    """The same tensors and metadata in three parts, written by the gguf package."""
    import gguf

    folder.mkdir()
    read = gguf.GGUFReader(file)
    kind = str(read.get_field("general.architecture").contents())
    writer = gguf.GGUFWriter(folder / "llama.gguf", kind, split_max_tensors=-(-len(read.tensors) // 3))
    for field in read.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in read.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
