"""Models by their hub ids, against a hub on the loopback address: found, planned, fetched, refused, resumed, kept."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.hub.server import Hub, Repo
from tests.hub.world import HIDDEN, STRANGER, TOKEN, User, checkpoint, shards, tensors

WEIGHTS = "model.safetensors"


def blobs(user: User) -> int:
    return sum(1 for path in user.hub_cache.glob("models--*/blobs/*") if path.is_file())


def test_a_model_is_fetched_by_its_id_without_code_pickles_and_the_folders_of_others(user: User, hub: Hub) -> None:
    commit = hub.model("lab/tiny").commit(checkpoint())
    said = user.harness("run", str(user.suite("[lab/tiny]")))
    (snapshot,) = user.hub_cache.glob("models--lab--tiny/snapshots/*")
    assert snapshot.name == commit
    assert {p.name for p in snapshot.iterdir()} == {"config.json", "tokenizer.json", WEIGHTS}
    assert {r.cell.model.commit for r in user.records()} == {commit}
    # Progress is shown while it is fetched: a first line, and one when it is here.
    told = [line for line in said.splitlines() if line.startswith("fetching model 'tiny': ")]
    size = sum(p.stat().st_size for p in snapshot.iterdir()) / 1e6
    assert (told[0], told[-1]) == (
        f"fetching model 'tiny': 0.0 of {size:,.1f} MB",
        f"fetching model 'tiny': {size:,.1f} of {size:,.1f} MB",
    )


def test_plan_has_the_sizes_of_a_model_of_the_hub_and_fetches_no_weights(user: User, hub: Hub) -> None:
    hub.model("lab/one").commit(checkpoint())
    hub.model("lab/three").commit(shards())
    cells = user.planned(user.suite("[lab/one, lab/three]"))
    sizes = [cell["estimated_bytes"] for cell in cells]
    whole = sum(tensor.nbytes for tensor in tensors().values())
    assert sizes == [whole, sizes[1]] * 2
    asked = [r for name in (WEIGHTS, *shards()) if name.endswith(".safetensors") for r in hub.sent(name)]
    assert asked
    assert all(r.range is not None for r in asked)  # headers alone
    assert not list(user.hub_cache.rglob("*.safetensors"))


def test_a_revision_is_measured_as_it_is_named_and_a_wrong_one_refused(user: User, hub: Hub) -> None:
    old = hub.model("lab/tiny").commit(checkpoint(1))
    new = hub.model("lab/tiny").commit(checkpoint(2))
    hub.model("lab/tiny").branches["v1"] = old
    for revision, commit in (("v1", old), (old, old), (None, new)):
        entry = "lab/tiny" if revision is None else f"{{repo: lab/tiny, revision: {revision}}}"
        cells = user.planned(user.suite(f"[{entry}]"))
        assert [c["cell"]["model"]["commit"] for c in cells] == [commit] * 2  # type: ignore[index]
    said = user.harness("plan", str(user.suite("[{repo: lab/tiny, revision: v9}]")), code=2)
    assert (
        f"model 'tiny': lab/tiny has no revision 'v9'; its branches and tags are listed at {hub.address}/lab/tiny/tree/main"
        in said
    )


@pytest.mark.slow
def test_a_branch_that_moved_between_two_runs_asks_new_questions(user: User, hub: Hub) -> None:
    suite = user.suite("[lab/tiny]")
    hub.model("lab/tiny").commit(checkpoint(1))
    user.harness("run", str(suite))
    first = user.records()
    user.harness("run", str(suite))
    assert len(user.records()) == len(first)  # nothing has moved: nothing is asked again
    moved = hub.model("lab/tiny").commit(checkpoint(2))
    user.harness("run", str(suite))
    again = user.records()[len(first) :]
    assert [r.question for r in again] == [r.question for r in first]
    assert not {r.key for r in again} & {r.key for r in first}
    assert {r.cell.model.commit for r in again} == {moved}


@pytest.mark.slow
def test_a_commit_that_changes_no_file_of_the_model_asks_nothing_and_fetches_nothing_again(user: User, hub: Hub) -> None:
    suite = user.suite("[lab/tiny]")
    hub.model("lab/tiny").commit(checkpoint())
    user.harness("run", str(suite))
    before, asked = len(user.records()), len(hub.sent(WEIGHTS))
    hub.model("lab/tiny").commit({**checkpoint(), "README.md": b"# Another text"})
    user.harness("run", str(suite))
    assert len(user.records()) == before
    assert all(r.range is not None for r in hub.sent(WEIGHTS)[asked:])  # its header, at most


@pytest.mark.parametrize(
    ("access", "token", "sentence"),
    [
        ("gated", None, "is gated: it is given to those who accept its conditions; open {page}, accept them, and log in once "),
        ("gated", STRANGER, "is gated, and your token has no access to it; ask for it at {page}, and run again when you have it"),
        ("gated", "hf_wrong", "refuses the token that it was sent for lab/tiny; log in again with: hf auth login (or"),
        ("private", None, "has no model lab/tiny, or it is private and you are not logged in; check the id, and for"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_one_sentence_with_what_to_do(
    access: str, token: str | None, sentence: str, user: User, hub: Hub
) -> None:
    hub.repos["models/lab/tiny"] = Repo(access=access)  # type: ignore[arg-type]
    hub.model("lab/tiny").commit(checkpoint())
    environment = {} if token is None else {"HF_TOKEN": token}
    for command in ("plan", "run"):
        said = user.harness(command, str(user.suite("[lab/tiny]")), code=2, **environment)
        assert sentence.format(page=f"{hub.address}/lab/tiny") in said
        assert len([line for line in said.splitlines() if line.strip()]) == 1, said
        assert token is None or token not in said


@pytest.mark.parametrize("how", ["in the environment", "by logging in"])
def test_a_gated_model_is_measured_with_a_token_which_is_in_no_file_and_message_afterwards(
    how: str, user: User, hub: Hub
) -> None:
    hub.repos["models/lab/tiny"] = Repo(access="gated")
    hub.model("lab/tiny").commit(checkpoint())
    environment = {"HF_TOKEN": TOKEN} if how == "in the environment" else {}
    login = user.folder / "hf" / "token"
    if not environment:  # what `hf auth login` leaves
        login.parent.mkdir()
        login.write_text(TOKEN)
    # One cell crashes: its log ends up in a record.
    suite = user.suite("[lab/tiny]").read_text().replace("{bits: 4}", "{bits: 4}, {bits: 4, on_a: crash}, {bits: 4, on_a: error}")
    (user.folder / "mine.yaml").write_text(suite)
    said = user.harness("plan", "mine.yaml", code=0, **environment)
    said += user.harness("run", "mine.yaml", code=0, **environment)
    assert {r.failure is None for r in user.records()} == {True, False}
    files = [p for p in user.folder.rglob("*") if p.is_file() and p != login]
    assert len(files) > 10
    assert [p for p in files if TOKEN.encode() in p.read_bytes() or TOKEN in p.name] == []
    assert TOKEN not in said
    assert {r.token for r in hub.requests if "lab/tiny" in r.path} == {TOKEN}
    assert {r.token for r in hub.sent(WEIGHTS)} == {None}  # another host's, which has no business with it


def test_a_connection_that_breaks_is_taken_up_where_it_broke(user: User, hub: Hub) -> None:
    large = {**tensors(), "model.layers.0.mlp.up_proj.weight": np.zeros((110_000, HIDDEN), dtype=np.float16)}
    files = {**checkpoint(), WEIGHTS: save(large, metadata={"format": "pt"})}
    hub.model("lab/tiny").commit(files)
    hub.break_after[WEIGHTS] = 12_000_000
    user.harness("run", str(user.suite("[lab/tiny]")))
    first, second = hub.sent(WEIGHTS)[-2:]
    assert (first.range, second.range) == (None, f"bytes={10 << 20}-")  # what the library had written
    (held,) = user.hub_cache.glob(f"models--lab--tiny/snapshots/*/{WEIGHTS}")
    assert held.read_bytes() == files[WEIGHTS]


def test_a_download_that_was_killed_goes_on_with_the_files_that_are_missing(user: User, hub: Hub) -> None:
    files = shards()
    hub.model("lab/tiny").commit(files)
    suite = user.suite("[lab/tiny]")
    last = "model-00003-of-00003.safetensors"
    hub.hold[last] = 100
    process = user.start("run", str(suite))
    assert hub.held.wait(120)
    while len(list(user.hub_cache.glob("models--lab--tiny/snapshots/*/*"))) < len(files) - 2:  # neither the last nor the twin
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.hold.clear()
    hub.released.set()
    before = {name: len(hub.sent(name)) for name in files}
    # Some files are here: nothing takes the half for the whole.
    cells = user.planned(suite)
    assert cells[0]["estimated_bytes"]
    user.harness("run", str(suite))
    again = [name for name in files if any(r.range is None for r in hub.sent(name)[before[name] :])]
    assert again == [last]


def test_the_files_of_the_index_are_fetched_and_no_twin_of_them(user: User, hub: Hub) -> None:
    hub.model("lab/tiny").commit(shards())
    user.harness("run", str(user.suite("[lab/tiny]")))
    assert {p.name for p in user.hub_cache.glob("models--lab--tiny/snapshots/*/*.safetensors")} == {
        f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)
    }
    assert hub.sent("consolidated.safetensors") == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {WEIGHTS: None},
            "holds only pickled weights (onnx/x.bin, pytorch_model.bin), which can run code when loaded; look for a",
        ),
        ({WEIGHTS: None, "pytorch_model.bin": None, "onnx/x.bin": None}, "lab/tiny holds no weights; look for a repository"),
        ({"config.json": None}, "lab/tiny has no config.json, so it is not a transformers checkpoint"),
        ({"tokenizer.json": None}, "lab/tiny holds no tokenizer (tokenizer.json, tokenizer.model, ...); fetch it"),
        ({WEIGHTS: None, "tiny.Q4_0.gguf": b"GGUF"}, "lab/tiny holds GGUF files (tiny.Q4_0.gguf); name one of them with `file`"),
    ],
)
def test_a_repository_that_holds_no_checkpoint_is_refused_before_anything_is_fetched(
    change: dict[str, bytes | None], sentence: str, user: User, hub: Hub
) -> None:
    files = {**checkpoint(), "onnx/x.bin": b"\0", **change}
    hub.model("lab/tiny").commit({name: data for name, data in files.items() if data is not None})
    said = user.harness("plan", str(user.suite("[lab/tiny]")), code=2)
    assert sentence in said
    assert len(said.splitlines()) == 1, said
    assert blobs(user) == 0


def test_shards_without_an_index_are_refused_by_plan_before_they_are_fetched(user: User, hub: Hub) -> None:
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    files = {name: data for name, data in checkpoint().items() if name != WEIGHTS}
    hub.model("lab/tiny").commit({**files, **dict.fromkeys(names, b"0")})
    said = user.harness("plan", str(user.suite("[lab/tiny]")), code=2)
    assert f"lab/tiny holds only {names[0]}, {names[1]}; give another revision" in said
    assert len(said.splitlines()) == 1, said
    assert hub.sent(names[0]) == []


@pytest.mark.slow
def test_offline_what_is_here_is_measured_and_what_is_not_is_one_sentence(user: User, hub: Hub) -> None:
    hub.model("lab/tiny").commit(checkpoint())
    hub.model("lab/other").commit(checkpoint())
    user.harness("run", str(user.suite("[lab/tiny]")))
    asked = len(hub.requests)
    before = len(user.records())
    user.harness("run", str(user.suite("[lab/tiny]")), "--fresh", HF_HUB_OFFLINE="1")
    assert len(user.records()) >= before
    cells = user.planned(user.suite("[lab/tiny]"), HF_HUB_OFFLINE="1")
    assert cells[0]["estimated_bytes"] == sum(tensor.nbytes for tensor in tensors().values())
    cold = user.suite("[lab/other]", name="cold")
    assert user.planned(cold, HF_HUB_OFFLINE="1")[0]["estimated_bytes"] is None
    said = user.harness("run", str(cold), code=2, HF_HUB_OFFLINE="1")
    assert said == (
        f"error: model 'other': lab/other is not (or not whole) in the local cache {user.hub_cache}, and HF_HUB_OFFLINE is set; "
        "unset it, or give a local folder: models: [{path: ./folder}]\n"
    )
    assert len(hub.requests) == asked


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_one_sentence_and_what_is_in_the_cache_is_measured_without_it(user: User, hub: Hub) -> None:
    hub.model("lab/tiny").commit(checkpoint())
    user.harness("run", str(user.suite("[lab/tiny]")))
    nowhere = "http://127.0.0.1:9"  # the port of `discard`, where nobody listens
    user.harness("run", str(user.suite("[lab/tiny]")), "--fresh", HF_ENDPOINT=nowhere)
    said = user.harness("run", str(user.suite("[lab/other]", name="cold")), code=2, HF_ENDPOINT=nowhere)
    assert "lab/other is not (or not whole) in the local cache" in said
    assert "and the hub cannot be reached; connect, or give a local folder" in said


@pytest.mark.slow
def test_a_hub_that_is_out_of_order_is_one_sentence(user: User, hub: Hub) -> None:
    """The library asks five times, with longer and longer pauses."""
    hub.fails_with = 503
    said = user.harness("plan", str(user.suite("[{repo: lab/tiny, revision: '" + "0" * 40 + "'}]", name="down")), code=2)
    assert "model 'tiny': the hub answers 503 for lab/tiny; try again later" in said


def test_a_model_that_does_not_fit_on_the_disk_is_refused_before_it_is_fetched(user: User, hub: Hub) -> None:
    hub.model("lab/tiny").commit(checkpoint())
    hub.model("lab/tiny").claimed[WEIGHTS] = 10**18
    said = user.harness("run", str(user.suite("[lab/tiny]")), code=2)
    assert "tiny: 1,000,000,000.0 GB" in said
    assert f"still to be fetched, and {user.hub_cache} has " in said
    assert "name a folder on another disk with HF_HOME=DIR" in said
    assert blobs(user) <= 1  # the config, which `plan` looks at


def test_a_mistake_in_the_entry_of_a_hub_model_is_named(user: User, hub: Hub) -> None:
    for entry, sentence in (
        ("{path: ., file: a.gguf}", "a model's `file` belongs to a `repo` of the hub"),
        ("{repo: lab/tiny, file: model.safetensors}", "a model's `file` names one GGUF file of its repository"),
        ("{repo: lab/tiny, revison: v1}", "did you mean 'revision' or 'repo'?"),
        ("lab/tiny/more", "neither a folder that exists nor a hub id (owner/name)"),
    ):
        assert sentence in user.harness("plan", str(user.suite(f"[{entry}]")), code=2)
    assert hub.requests == []


def test_the_folder_of_a_test_is_nobodys_own(user: User) -> None:
    assert str(Path.home()) not in user.environment().values()


def test_the_chat_template_of_a_model_of_the_hub_is_known_to_plan_without_its_weights(user: User, hub: Hub) -> None:
    template = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    hub.model("lab/base").commit(checkpoint())
    hub.model("lab/chat").commit({**checkpoint(), "chat_template.jinja": template.encode()})
    asked = "methods: {bf16: }\nprobes: [tasks]\ntasks: [reference_facts]\n"
    said = user.harness("plan", str(user.suite("[lab/base, lab/chat]", extra=asked, fakes=False)))
    assert [line for line in said.splitlines() if "chat template" in line] == [
        "note         model 'chat' has a chat template, and reference_facts is scored without it; to score it as it is served: "
        "chat_template: true"
    ]
    user.harness("plan", str(user.suite("[lab/chat]", extra=f"{asked}chat_template: true", fakes=False)))
    said = user.harness("plan", str(user.suite("[lab/base]", extra=f"{asked}chat_template: true", fakes=False)), code=2)
    assert "model 'base': its tokenizer has no chat template" in said
    assert not list(user.hub_cache.rglob("*.safetensors"))
