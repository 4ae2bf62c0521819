"""The licence of a model is what its own card says, and nothing that the card says does anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import reference
from harness.artifact import Licence
from harness.models import licence
from harness.spec import Model


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# M", Licence(identifier="apache-2.0")),
        ("---\r\nlicense: mit\r\n---\r\n", Licence(identifier="mit")),
        ("\ufeff---\nlicense: [mit, apache-2.0]\n---", Licence(identifier="mit")),
        (
            "---\nlicense: other\nlicense_name: tongyi-qianwen\nlicense_link: https://example.org/LICENSE\n---\n",
            Licence(identifier="other", name="tongyi-qianwen", link="https://example.org/LICENSE"),
        ),
        ("---\nlicense: other\nlicense_link: LICENSE\n---\n", Licence(identifier="other", link="LICENSE")),
        ("---\nlicense: other\nlicense_link: javascript:alert(1)\n---\n", Licence(identifier="other")),
        ("---\nlicense: other\nlicense_link: ../../etc/passwd\n---\n", Licence(identifier="other")),
        ('---\nlicense: other\nlicense_name: "a\\n---\\nb"\n---\n', Licence(identifier="other")),
        ("---\nlicense: mit or something\n---\n", None),
        ("---\nlicense: {mit: true}\n---\n", None),
        ("---\nlicense: true\n---\n", None),
        ("---\ntags: [a]\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system [touch evil]\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# M\n---\nlicense: mit\n---\n", None),
        ("", None),
        ("---\n" + "x: " + "y" * (1 << 17) + "\nlicense: mit\n---\n", None),
    ],
)
def test_front_matter_is_read_as_data(
    card: str, expected: Licence | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licence.of(Model(name="m", path=str(tmp_path))) == expected
    assert {p.name for p in tmp_path.iterdir()} == {"README.md"}


def test_a_file_that_is_a_model_has_the_card_beside_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    (tmp_path / "m.gguf").write_bytes(b"")
    assert licence.of(Model(name="m", path=str(tmp_path / "m.gguf"))) == Licence(identifier="gemma")


def test_the_embedded_model_has_the_projects_licence_and_random_weights_have_none(tmp_path: Path) -> None:
    assert licence.of(Model(name="reference", path=str(reference.MODEL_DIR))) == Licence(identifier="apache-2.0")
    assert licence.of(Model(name="m", path=str(tmp_path), random=True)) is None
    assert licence.of(Model(name="m", path=str(tmp_path))) is None


def test_a_model_of_the_hub_that_is_not_here_is_not_asked_for() -> None:
    assert licence.of(Model(name="m", repo="lab/m", commit="c" * 40)) is None
