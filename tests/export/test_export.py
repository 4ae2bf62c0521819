"""A measured artifact leaves the cache with its bytes and its record, or not at all: scripted cells in real child processes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import proof, store
from harness.artifact import MANIFEST, ArtifactRecord, StoredFile
from harness.errors import BadInput
from harness.files import sha256
from harness.measure import machine
from harness.report import choose
from harness.report.view import view
from harness.run import contents, export, runner
from harness.run.observer import Silent
from harness.spec import Served, digest
from harness.suite import matrix
from tests.hub.world import checkpoint

WriteSuite = Callable[..., Path]


FOUR = "fake 4-bit value=2"


class Lab:
    """A suite that was run, with its results and its cache."""

    def __init__(self, suite: Path, folder: Path) -> None:
        self.suite, self.folder, self.cache = suite, folder, folder / "cache"
        (self.path,) = (folder / "results").rglob("*.jsonl")

    def export(self, cell: str, name: str = "out", **wishes: object) -> export.Export:
        run = store.read(self.path)
        shown = view(run)
        wish = export.Wish(cell=choose.cell(shown, cell), to=self.folder / name)
        return export.export(run, shown, replace(wish, **wishes), self.cache, Silent())  # type: ignore[arg-type]

    def artifact(self, cell: str) -> Path:
        run = store.read(self.path)
        record = next(r for r in run.records if r.cell.label == cell)
        return self.cache / "artifacts" / run.artifacts[record.artifact].folder

    def quantized(self) -> int:
        """How often a child has quantized something."""
        return len((self.cache / "fake-quantized.txt").read_text().splitlines())

    def edit(self, change: Callable[[dict[str, object]], None]) -> None:
        """Changes every line of the run file, as somebody might who sends it."""
        lines = [json.loads(proof.unsealed(line)) for line in self.path.read_bytes().splitlines(keepends=True)]
        for line in lines:
            change(line)
        contents = (json.dumps(line, separators=(",", ":")).encode() for line in lines)
        self.path.write_bytes(b"".join(proof.chained(contents)))
        proof.seal_path(self.path).unlink(missing_ok=True)


def run(suite: Path, folder: Path) -> Lab:
    runner.run(matrix.plan(suite, device="cpu"), runner.Settings(results=folder / "results", cache=folder / "cache"))
    return Lab(suite, folder)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Two scripted cells of a small model, run once for all tests."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "tiny").mkdir()
    for name, data in checkpoint().items():
        if "/" not in name:
            (folder / "tiny" / name).write_bytes(data)
    suite = folder / "scripted.yaml"
    suite.write_text(SUITE)
    return run(suite, folder)


SUITE = """
name: scripted
models: [{path: tiny, name: tiny}]
baseline: fake 16-bit
probes: [quantize, fake]
methods: {fake: [{bits: 16}, {bits: 4, value: 2}]}
"""


@pytest.fixture
def lab(measured: Lab, tmp_path: Path) -> Lab:
    """A copy of what was measured, to spoil."""
    for name in ("results", "cache"):
        shutil.copytree(measured.folder / name, tmp_path / name, symlinks=True)
    return Lab(measured.suite, tmp_path)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_nlink) for p in folder.rglob("*") if p.is_file()}


def test_an_export_is_the_measured_files_byte_for_byte_with_a_card_that_names_them(lab: Lab) -> None:
    before = snapshot(lab.artifact(FOUR))
    done = lab.export(FOUR)
    assert snapshot(lab.artifact(FOUR)) == before, "the cache is left alone, and nothing links into it"
    assert {p.name for p in done.folder.iterdir()} == {"fake.json", "tokenizer.json", "README.md"}
    assert (done.folder / "fake.json").read_bytes() == before["fake.json"][0]
    card = (done.folder / "README.md").read_text()
    assert done.artifact.digest in card
    assert sha256(done.folder / "fake.json") in card
    assert {r.artifact for r in store.read(lab.path).records if r.cell.label == FOUR} == {done.artifact.digest}
    assert (done.rebuilt, lab.quantized()) == (False, 2)


def test_what_is_no_longer_cached_is_made_again_and_has_the_same_bytes(lab: Lab) -> None:
    shutil.rmtree(lab.artifact(FOUR))
    done = lab.export(f"tiny/{FOUR}")
    assert (done.rebuilt, lab.quantized()) == (True, 3)
    assert "made again" in (done.folder / "README.md").read_text()
    assert lab.export(FOUR, "again").rebuilt is False


def test_an_artifact_that_comes_out_otherwise_is_not_exported(write_suite: WriteSuite, tmp_path: Path) -> None:
    lab = run(write_suite("{bits: 4, on_quantize: another}"), tmp_path)
    label = next(r.cell.label for r in store.read(lab.path).records if r.cell.bits == 4)
    shutil.rmtree(lab.artifact(label))
    with pytest.raises(export.Differs, match=r"made again it is another one \(fake\.json\).*the same as then") as raised:
        lab.export(label)
    assert raised.value.exit_code == 1
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_a_file_that_has_changed_in_the_cache_is_not_exported(lab: Lab) -> None:
    place = lab.artifact(FOUR) / "fake.json"
    data = bytearray(place.read_bytes())
    data[5] ^= 1
    place.write_bytes(bytes(data))
    with pytest.raises(export.Differs, match=r"fake\.json: not what was measured"):
        lab.export(FOUR)
    assert not [p for p in lab.folder.iterdir() if "out" in p.name]
    place.with_name("more.json").write_text("{}")
    with pytest.raises(export.Differs, match=r"more\.json"):
        lab.export(FOUR)


def test_a_folder_that_is_not_free_is_left_as_it_is(lab: Lab) -> None:
    (lab.folder / "out").mkdir()
    (lab.folder / "out" / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="there already and not empty"):
        lab.export(FOUR)
    with pytest.raises(BadInput, match="there already and not empty"):
        lab.export(FOUR, again=True)
    assert snapshot(lab.folder / "out") == {"mine.txt": (b"mine", 1)}
    (lab.folder / "file").write_text("")
    with pytest.raises(BadInput, match="is a file or a link"):
        lab.export(FOUR, "file")
    (lab.folder / "link").symlink_to(lab.folder / "elsewhere")
    with pytest.raises(BadInput, match="is a file or a link"):
        lab.export(FOUR, "link")
    (lab.folder / "empty").mkdir()
    assert lab.export(FOUR, "empty").copied


def test_an_export_that_is_there_gets_a_new_card_where_that_is_wanted(lab: Lab) -> None:
    lab.export(FOUR)
    (lab.folder / "out" / "README.md").write_text("old")
    done = lab.export(FOUR, again=True)
    assert not done.copied
    assert (done.folder / "README.md").read_text().startswith("---\n")
    with pytest.raises(BadInput, match="not empty"):
        lab.export("fake 16-bit", again=True)


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk_bytes", lambda path: 1000)
    with pytest.raises(BadInput, match=r"the export takes 0\.00 GB and that disk has 0\.00 GB free"):
        lab.export(FOUR)
    assert not (lab.folder / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "README.md", "readme.md", "a\\b", "", "a//b", "a\nb"])
def test_a_run_file_that_names_files_outside_its_folder_is_refused(name: str, lab: Lab) -> None:
    def change(line: dict[str, object]) -> None:
        files = (StoredFile(name=name, bytes=1, sha256="0" * 64),)
        if line["kind"] == "artifact":
            line |= {"files": [{"name": name, "bytes": 1, "sha256": "0" * 64}], "digest": digest(files)}
        if line["kind"] == "record":
            line["artifact"] = digest(files)

    lab.edit(change)
    with pytest.raises(BadInput, match="missing or damaged"):
        lab.export(FOUR)


@pytest.mark.parametrize("folder", ["..", "../results", "/tmp", "a/b", ""])
def test_a_run_file_that_names_a_folder_outside_the_cache_is_refused(folder: str, lab: Lab) -> None:
    def change(line: dict[str, object]) -> None:
        if line["kind"] == "artifact":
            line["folder"] = folder

    lab.edit(change)
    with pytest.raises(BadInput, match="missing or damaged"):
        lab.export(FOUR)


def test_a_cell_without_an_artifact_says_why(write_suite: WriteSuite, tmp_path: Path) -> None:
    lab = run(write_suite('{bits: 4, on_quantize: "raise:no luck"}'), tmp_path)
    label = next(r.cell.label for r in store.read(lab.path).records if r.cell.bits == 4)
    with pytest.raises(BadInput, match=r"has no artifact \(quantize: .*no luck"):
        lab.export(label)


def test_what_a_run_file_says_does_not_steer_the_terminal(lab: Lab) -> None:
    def change(line: dict[str, object]) -> None:
        if line["kind"] == "plan":
            line["commands"] = ["quant-harness run \x1b[31m\nx"]
        if line["kind"] == "record":
            del line["artifact"]

    lab.edit(change)
    with pytest.raises(BadInput, match="quant-harness run \ufffd") as raised:
        lab.export(FOUR)
    assert str(raised.value).isprintable()


def test_numbers_of_several_artifacts_are_nobodys(lab: Lab) -> None:
    seen: list[int] = []

    def change(line: dict[str, object]) -> None:
        if line["kind"] == "record":
            seen.append(1)
            line["artifact"] = "ab" * 32 if len(seen) == 1 else line["artifact"]

    lab.edit(change)
    with pytest.raises(BadInput, match="measured on 2 different artifacts"):
        lab.export("fake 16-bit")


def test_a_run_file_from_before_there_were_digests_says_so(lab: Lab) -> None:
    def change(line: dict[str, object]) -> None:
        if line["kind"] == "record":
            del line["artifact"]

    lab.edit(change)
    with pytest.raises(BadInput, match=r"does not say which bytes were measured; measure it again with: quant-harness run"):
        lab.export(FOUR)


def test_a_lost_artifact_whose_suite_is_gone_or_changed_is_not_made_otherwise(lab: Lab) -> None:
    shutil.rmtree(lab.artifact(FOUR))
    moved = lab.folder / "mine.yaml"

    def change(line: dict[str, object]) -> None:
        if line["kind"] == "plan":
            line["commands"] = [f"quant-harness run {moved}"]

    lab.edit(change)
    with pytest.raises(BadInput, match=r"its suite is not where it was .* --suite FILE"):
        lab.export(FOUR)
    text = SUITE.replace("path: tiny", f"path: {lab.suite.parent / 'tiny'}")
    moved.write_text(text.replace("value: 2", "value: 7"))
    with pytest.raises(BadInput, match="does not plan it any more"):
        lab.export(FOUR)
    moved.write_text(text + "seed: 7\n")
    with pytest.raises(BadInput, match="has another seed now"):
        lab.export(FOUR)
    moved.unlink()
    assert lab.export(FOUR, suite=str(lab.suite)).rebuilt


def test_two_cells_with_the_same_bytes_are_one_artifact(write_suite: WriteSuite, tmp_path: Path) -> None:
    lab = run(write_suite("{bits: 4}"), tmp_path)
    found = store.read(lab.path)
    assert len(found.artifacts) == 1
    assert lab.export("fake 4-bit").artifact == lab.export("fake 16-bit", "other").artifact


def test_the_bytes_of_an_artifact_are_listed_once_and_each_record_names_them(lab: Lab) -> None:
    run(lab.suite, lab.folder)  # all is answered
    lines = [json.loads(line) for line in lab.path.read_text().splitlines()]
    listed = [line for line in lines if line["kind"] == "artifact"]
    assert len(listed) == 2
    first = {line["digest"]: lines.index(line) for line in listed}
    assert all(first[line["artifact"]] < number for number, line in enumerate(lines) if line["kind"] == "record")
    for artifact in store.read(lab.path).artifacts.values():
        assert isinstance(artifact, ArtifactRecord)
        assert MANIFEST not in {file.name for file in artifact.files}
        assert artifact.digest == digest(artifact.files)
        assert all(sha256(lab.cache / "artifacts" / artifact.folder / file.name) == file.sha256 for file in artifact.files)


def test_an_interrupted_export_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        assert [p.name for p in lab.folder.iterdir() if p.name.startswith(".draft-out-")] == [f".draft-out-{os.getpid()}"]
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_card", killed)
    with pytest.raises(KeyboardInterrupt):
        lab.export(FOUR)
    assert not [p for p in lab.folder.iterdir() if "out" in p.name]


def test_a_given_gguf_file_is_exported_under_its_own_name_with_all_its_parts(tmp_path: Path) -> None:
    given, artifact = tmp_path / "given", tmp_path / "artifact"
    given.mkdir()
    artifact.mkdir()
    names = [f"mine-Q4_0-{n:05d}-of-00002.gguf" for n in (1, 2)]
    for name in names:
        (given / name).write_bytes(name.encode())
    (artifact / "model.gguf").symlink_to(given / names[0])
    notes = ("artifact.json", "reload_check.json", "layer_errors.json", "source.json")
    for name in (*notes, "verified-0123456789ab.json", "answers-0123456789ab.json"):
        (artifact / name).write_text("{}")
    assert {name: path.read_text() for name, path in contents.files(artifact).items()} == {name: name for name in names}
    (artifact / "model.gguf").unlink()
    (given / "one.gguf").write_text("one")
    (artifact / "model.gguf").symlink_to(given / "one.gguf")
    assert list(contents.files(artifact)) == ["one.gguf"]


def test_a_model_behind_a_server_has_nothing_to_export(lab: Lab) -> None:
    cell = choose.cell(view(store.read(lab.path)), FOUR)
    served = Served(scheme=cell.cell.scheme, url="http://127.0.0.1:8000/v1", model="mine")
    with pytest.raises(
        BadInput, match=r"was measured on the server http://127\.0\.0\.1:8000/v1, and whoever runs that has its files"
    ):
        export.measured(store.read(lab.path), replace(cell, cell=replace(cell.cell, origin=served)))
