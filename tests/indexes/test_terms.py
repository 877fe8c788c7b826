"""Terms folders: parts in order, taken over after a kill, refused where they are not what they should be."""

import pytest

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
    with pytest.raises(InputError, match="begun otherwise .*splade ≠ other"), TermWriter(tmp_path / "t", other):
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
