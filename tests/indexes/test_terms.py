"""Terms folders: parts in order, taken over after a kill, refused where they are not what they should be."""

import shutil

import pytest

from indexes import manifest
from indexes.errors import InputError
from indexes.terms import TermStore, TermWriter

MADE_BY = {"encoder": "splade", "fingerprint": "f" * 64}
PARTS = [(["a", "b"], [{"tea": 1.5, "cup": 0.25}, {}]), (["c"], [{"pot": 2.0}])]
WHOLE = [("a", {"tea": 1.5, "cup": 0.25}), ("b", {}), ("c", {"pot": 2.0})]
CORPUS = {"source": None, "fingerprint": "0" * 64}


def test_parts_come_back_in_order(tmp_path):
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        for number in (1, 0):
            writer.write(number, *PARTS[number], f"digest {number}")
        made = writer.finish(2, CORPUS)
    opened = TermStore.open(tmp_path / "t")
    assert list(opened) == list(made) == WHOLE
    assert (len(opened), opened.made_by, opened.corpus) == (3, MADE_BY, CORPUS)
    assert not (tmp_path / "t.partial").exists()


def test_an_interrupted_writer_is_taken_over(tmp_path):
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        writer.write(0, *PARTS[0], "digest 0")
        writer.write(5, *PARTS[1], "of a longer corpus")
        with pytest.raises(InputError, match="another process is writing"), TermWriter(tmp_path / "t", MADE_BY):
            pass
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        assert writer.has(0, "digest 0")
        assert not writer.has(0, "another digest")
        assert not writer.has(1, "digest 1")
        writer.write(1, *PARTS[1], "digest 1")
        assert list(writer.finish(2, CORPUS)) == WHOLE


def test_what_another_encoder_began_is_refused_or_begun_anew(tmp_path):
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        writer.write(0, *PARTS[0], "digest 0")
    other = {"encoder": "other", "fingerprint": "e" * 64}
    with (
        pytest.raises(InputError, match="begun by another sparse encoder .*splade ≠ other"),
        TermWriter(tmp_path / "t", other),
    ):
        pass
    with TermWriter(tmp_path / "t", other, overwrite=True) as writer:
        assert not writer.has(0, "digest 0")
        writer.write(0, *PARTS[1], "digest 0")
        assert list(writer.finish(1, CORPUS)) == WHOLE[2:]
    with pytest.raises(InputError, match="already exists"):
        TermWriter(tmp_path / "t", other)
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "diary.txt").write_text("dear")
    with pytest.raises(InputError, match="holds diary.txt"), TermWriter(tmp_path / "mine", other):
        pass


def test_damage_is_refused(tmp_path):
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        writer.write(0, *PARTS[0], "digest 0")
        writer.finish(1, CORPUS)
    path = tmp_path / "t" / "part-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="part-00000.arrow"):
        TermStore.open(tmp_path / "t")


def test_parts_that_are_missing_or_damaged_are_made_again(tmp_path):
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        for number in (0, 1):
            writer.write(number, *PARTS[number], f"digest {number}")
    content = tmp_path / "t.partial" / "folder"
    (content / "part-00000.arrow").write_bytes(b"")
    (content / "part-00001.arrow").unlink()
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        for number in (0, 1):
            assert not writer.has(number, f"digest {number}")
            writer.write(number, *PARTS[number], f"digest {number}")
        assert list(writer.finish(2, CORPUS)) == WHOLE


def test_a_writer_killed_while_publishing_leaves_nothing_that_counts(tmp_path, monkeypatch):
    """Folders are exchanged: the old parts then lie where the new ones lay."""
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        writer.write(0, *PARTS[0], "old digest")
        writer.finish(1, CORPUS)

    def killed(*_):
        raise KeyboardInterrupt

    with TermWriter(tmp_path / "t", MADE_BY, overwrite=True) as writer:
        writer.write(0, *PARTS[1], "new digest")
        monkeypatch.setattr(manifest.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(1, {**CORPUS, "fingerprint": "1" * 64})
        monkeypatch.undo()
    assert list(TermStore.open(tmp_path / "t")) == WHOLE[2:]
    with TermWriter(tmp_path / "t", MADE_BY, overwrite=True) as writer:
        assert not writer.has(0, "new digest")
        writer.write(0, *PARTS[1], "new digest")
        assert list(writer.finish(1, CORPUS)) == WHOLE[2:]


def test_a_partial_folder_without_its_content_can_be_gone_on_with(tmp_path):
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        writer.write(0, *PARTS[0], "digest 0")
    shutil.rmtree(tmp_path / "t.partial" / "folder")
    with TermWriter(tmp_path / "t", MADE_BY) as writer:
        assert not writer.has(0, "digest 0")
        writer.write(0, *PARTS[1], "digest 0")
        assert list(writer.finish(1, CORPUS)) == WHOLE[2:]


def test_a_writer_that_made_nothing_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="broken"), TermWriter(tmp_path / "t", MADE_BY):
        raise InputError("broken")
    assert list(tmp_path.iterdir()) == []
