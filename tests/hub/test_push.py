"""An export goes onto the hub with its card: a hub on the loopback address, the harness as a user runs it."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import pytest

from harness import proof, store
from tests.hub.server import LFS_FROM, Hub
from tests.hub.world import ROOT, STRANGER, TOKEN, User, checkpoint
from tests.test_docs import blocks

CARD = b"---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\n---\n# Tiny\n"


@pytest.fixture
def measured(user: User, hub: Hub) -> User:
    """A user who has measured a hub's model, whose card names a licence."""
    hub.model("lab/tiny").commit({**checkpoint(), "README.md": CARD})
    user.harness("run", str(user.suite("[lab/tiny]")))
    hub.requests.clear()
    return user


def push(user: User, *more: str, code: int = 0, to: str = "out", token: str | None = TOKEN, repo: str = "me/tiny-4bit") -> str:
    given = {} if token is None else {"HF_TOKEN": token}
    arguments = ("export", "results/mine", "fake 4-bit", "--to", to, "--push", repo, *more)
    return user.harness(*arguments, code=code, **given)


def held(hub: Hub, name: str = "me/tiny-4bit") -> dict[str, bytes]:
    repo = hub.repos[f"models/{name}"]
    return repo.commits[repo.branches["main"]]


def written_to(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


@pytest.mark.slow
def test_an_export_is_pushed_with_its_card_to_a_new_private_repository_and_its_token_is_written_nowhere(
    measured: User, hub: Hub
) -> None:
    said = push(measured)
    folder = measured.folder / "out"
    assert {n: b for n, b in held(hub).items() if n != ".gitattributes"} == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert hub.repos["models/me/tiny-4bit"].access == "private"
    repo = hub.repos["models/me/tiny-4bit"]
    assert repo.summaries[repo.branches["main"]] == "tiny / fake 4-bit, measured by quant-harness"
    assert f"pushed    {hub.address}/me/tiny-4bit (private, new), commit {repo.branches['main'][:12]}" in said
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\nbase_model: lab/tiny\n")
    assert TOKEN not in said
    assert TOKEN.encode() not in written_to(measured.folder)
    assert all(TOKEN not in request.path for request in hub.requests)

    # Once more: what is there is not overwritten unasked; asked for, it is, and nothing of the former stays.
    before = dict(held(hub))
    assert "holds 3 files already (README.md, fake.json, tokenizer.json); say --replace" in push(measured, code=2, to="second")
    assert held(hub) == before
    repo.commit({**before, "model-00001-of-00002.safetensors": b"old shard"})
    said = push(measured, "--replace", to="second")
    assert set(held(hub)) == {".gitattributes", "README.md", "fake.json", "tokenizer.json"}
    assert "was there already, its card is new" in said, "the folder of the refused push serves for this one"


@pytest.mark.slow
def test_what_a_hub_refuses_is_said_in_words_and_the_export_stays(measured: User, hub: Hub) -> None:
    assert "pushing needs a token that may write" in push(measured, code=2, token=None)
    assert not (measured.folder / "out").exists(), "said before anything is copied"
    assert "is no hub id; write OWNER/NAME" in push(measured, code=2, repo="../evil")
    assert "HF_HUB_OFFLINE is set" in measured.harness(
        "export", "results/mine", "fake 4-bit", "--to", "out", "--push", "a/b", code=2, HF_HUB_OFFLINE="1", HF_TOKEN=TOKEN
    )
    for repo, token in (("others/tiny", TOKEN), ("me/tiny", STRANGER)):
        said = push(measured, code=2, repo=repo, token=token)
        assert "your token may not write there" in said
        assert token not in said
    assert "refuses the token" in push(measured, code=2, token="hf_wrong")
    assert {p.name for p in (measured.folder / "out").iterdir()} == {"README.md", "fake.json", "tokenizer.json"}
    hub.fails_with = 503
    assert "the hub answers 503" in push(measured, code=2)


@pytest.fixture
def large(user: User, hub: Hub) -> tuple[User, str]:
    """A user who has measured a cell whose artifact is a large file, and its label."""
    hub.model("lab/tiny").commit(checkpoint())
    script = "x" * LFS_FROM  # a fake artifact holds its options
    suite = user.suite(
        "[lab/tiny]",
        fakes=False,
        extra=f"""
methods: {{fake: [{{bits: 16}}, {{bits: 4, package: "{script}"}}]}}
baseline: fake 16-bit
probes: [quantize]""",
    )
    user.harness("run", str(suite))
    label = next(c.cell.label for c in store.read(user.folder / "results" / "mine").plan.cells if not c.baseline)
    user.harness("export", "results/mine", label, "--to", "out")
    return user, label


def push_large(large: tuple[User, str]) -> tuple[bytes, str]:
    """The large file, and what was said."""
    user, label = large
    said = user.harness("export", "results/mine", label, "--to", "out", "--push", "me/large", "--public", HF_TOKEN=TOKEN)
    return (user.folder / "out" / "fake.json").read_bytes(), said


@pytest.mark.slow
def test_a_large_file_goes_as_lfs_to_a_hub_without_xet_and_arrives_with_its_bytes(large: tuple[User, str], hub: Hub) -> None:
    data, _ = push_large(large)
    assert held(hub, "me/large")["fake.json"] == data
    assert hub.stored.keys() >= {hashlib.sha256(data).hexdigest()}
    uploads = [r for r in hub.requests if r.method == "PUT"]
    assert uploads
    assert all(r.token is None for r in uploads), "the storage gets no token"
    assert hub.repos["models/me/large"].access == "public"


@pytest.mark.slow
def test_a_large_file_goes_through_xet_where_the_hub_has_it_and_arrives_with_its_bytes(
    large: tuple[User, str], hub: Hub, tmp_path: Path
) -> None:
    pytest.importorskip("hf_xet")
    hub.cas, hub.sender = tmp_path / "cas", large[0].folder / "out"
    hub.cas.mkdir()
    data, said = push_large(large)
    assert held(hub, "me/large")["fake.json"] == data, "read back from the storage"
    assert not hub.stored, "nothing went as LFS"
    assert not [r for r in hub.requests if r.method == "PUT"]
    assert "pushed    " in said
    assert TOKEN.encode() not in written_to(hub.cas)


def test_public_and_replace_belong_to_a_push(measured: User) -> None:
    said = measured.harness("export", "results/mine", "fake 4-bit", "--to", "out", "--replace", code=2)
    assert "--public and --replace belong to --push" in said


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_shown(user: User, hub: Hub) -> None:
    hub.model("lab/tiny").commit(checkpoint())
    user.harness("run", str(user.suite("[lab/tiny]", name="quick")))
    (path,) = (user.folder / "results" / "quick").glob("*.jsonl")
    contents = (proof.unsealed(line) for line in path.read_bytes().splitlines(keepends=True))
    renamed = proof.chained(c.replace(b'"fake 4-bit"', b'"gptq 4-bit g64"') for c in contents)  # a label is no part of any key
    path.write_bytes(b"".join(renamed))
    proof.seal_path(path).unlink()
    lines = [line for block in blocks(ROOT / "docs" / "export.md", "sh") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "quant-harness"
        user.harness(*arguments, HF_TOKEN=TOKEN)
    assert {p.name for p in (user.folder / "gptq-4bit").iterdir()} <= set(held(hub, "me/tiny-gptq-4bit"))
