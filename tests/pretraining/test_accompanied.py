"""What masks may take, and the texts that accompany others: characters masked, fields of the same document."""

import json

import numpy as np
import pytest
import torch

from indexes.errors import InputError
from pretraining import pretrain
from pretraining.configuration import PretrainConfig
from pretraining.marks import Marks, content_spans, read_words
from pretraining.masking import IGNORED, Batch, MaskOptions, Vocabulary, draw_masks, seeded
from pretraining.terms.parts import words_left
from pretraining.token_writer import Extras, write_tokens
from pretraining.tokens import Accompanied, Collator, TokenWindows, masked_characters
from pretraining.training import open_windows
from retrieval.documents import Document

CPU = torch.device("cpu")
TEXTS = ["walking river stones at night, green", "paper", "house train music water walking green river paper night"]
DOCUMENTS = [
    Document("a", TEXTS[0], "Green Stone", {"why": "music of water", "spans": [[8, 13], [21, 23]]}),
    Document("empty", " ", "", {"why": "lost"}),
    Document("b", TEXTS[1], "", {"why": None}),
    Document("c", f"  {TEXTS[2]}", "", {"why": "night train walking house stone " * 3 + "river", "spans": [[2, 7]]}),
]


@pytest.fixture
def write(tokenizer, tmp_path):
    def made(name="tokens", documents=DOCUMENTS, **extras):
        write_tokens(documents, tokenizer, tmp_path / name, max_length=16, extras=Extras(**extras))
        return tmp_path / name

    return made


def pieces(tokenizer, item, flag):
    return [
        piece for piece, on in zip(tokenizer.convert_ids_to_tokens(item["ids"].tolist()), item[flag], strict=True) if on
    ]


def test_marks_are_words_of_the_list_and_what_spans_touch(write, tokenizer):
    folder = write(marks=Marks(frozenset({"green", "stones"}), "spans"))
    first, *_, last = [TokenWindows(folder)[row] for row in range(len(TokenWindows(folder)))]
    # of "Green Stone walking river stones at night, green": the listed words, "river" and "at"
    assert pieces(tokenizer, first, "marked") == ["green", "river", "stone", "##s", "a", "##t"] + ["green"] * (
        len(pieces(tokenizer, first, "marked")) - 6
    )
    every = [
        piece
        for row in range(len(TokenWindows(folder)))
        for piece in pieces(tokenizer, TokenWindows(folder)[row], "marked")
    ]
    assert every.count("green") == 3
    assert every.count("house") == 1, "a span counts from where the text begins, spaces included"
    assert "paper" not in every
    assert last["marked"].dtype == bool


def test_spans_are_found_in_what_is_read():
    document = Document("x", "  river stone", "A", {"s": [[2, 7]]})
    for title in ("", "A", "  A"):
        one = document._replace(title=title)
        ((start, end),) = content_spans(one, "s")
        assert one.content[start:end] == "river"
    assert content_spans(document, "other") == []


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[3]], r"has \[3\]; expected pairs"),
        ([3], "has 3; expected pairs"),
        ("ab", "has 'ab'; expected pairs"),
        ([[4, 4]], r"has \[4, 4\]; expected START below END, within its 5 characters"),
        ([[0, 6]], r"has \[0, 6\]"),
        ([[0.0, 2]], r"has \[0.0, 2\]; expected pairs"),
        ([[-1, 2]], r"has \[-1, 2\]"),
    ],
)
def test_spans_that_are_none_are_refused(spans, message):
    with pytest.raises(InputError, match=f"s of document 'x' {message}"):
        content_spans(Document("x", "river", "", {"s": spans}), "s")


def test_a_list_of_words_is_read_or_refused(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("River\n\n straße \n")
    assert read_words(path) == {"river", "strasse"}
    path.write_text("river\ngreen stone\n")
    with pytest.raises(InputError, match=r"line 2: found 'green stone'; expected one word"):
        read_words(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="has no word"):
        read_words(path)
    with pytest.raises(InputError, match="cannot be read as a list of words"):
        read_words(tmp_path / "none")


def test_masks_take_marked_tokens_alone(write, tokenizer):
    folder = write(marks=Marks(frozenset({"green", "walking"})))
    windows = TokenWindows(folder)
    batch = Collator(tokenizer)([windows[row] for row in range(len(windows))])
    found = Batch.of(batch["ids"], batch["attention_mask"], batch["word_starts"], marked=batch["marked"])
    for seed in range(20):
        masks = draw_masks(found, MaskOptions(0.9), Vocabulary(3, len(tokenizer)), seeded(CPU, seed))
        taken = masks.labels != IGNORED
        assert not (taken & ~batch["marked"]).any()
        assert taken.any()


def test_characters_are_masked_where_they_were_drawn(tokenizer):
    text = "one two three four five six seven eight nine"
    starts = set()
    for seed in range(300):
        masked = masked_characters(text, 5, "[MASK]", np.random.default_rng(seed))
        before, after = masked.split(" [MASK] ")
        assert text.startswith(before)
        assert text.endswith(after)
        assert len(before) + 5 + len(after) == len(text)
        starts.add(len(before))
    assert starts == set(range(len(text) - 4))
    short = "thirty letters are not here"
    assert masked_characters(short, 5, "[MASK]", np.random.default_rng(0)) == short


def test_texts_come_once_more_with_characters_masked(write, tokenizer):
    data = Accompanied(write(texts=True), 7, tokenizer, characters=5)
    assert [data[row]["ids"].tolist() for row in range(len(data))] == [
        data.windows[row]["ids"].tolist() for row in range(len(data))
    ]
    again = Accompanied(write("again", texts=True), 7, tokenizer, characters=5)
    different = 0
    for number in range(3 * len(data)):
        masked = data[number]["others"]["masked"]["ids"]
        assert masked.tolist() == again[number]["others"]["masked"]["ids"].tolist(), "the same for the same seed"
        different += masked.tolist() != data[number % len(data)]["others"]["masked"]["ids"].tolist()
        assert len(masked) <= 14
        assert len(data[number]["others"]["masked"]["word_starts"]) == len(masked)
    assert different > 0, "another place each time"
    long = next(row for row in range(len(data)) if len(data[row]["ids"]) > 8)
    assert tokenizer.mask_token_id in data[long]["others"]["masked"]["ids"]


def test_fields_are_those_of_the_same_document(write, tokenizer):
    data = Accompanied(write(fields=("why",)), 0, tokenizer, fields=["why"])
    owner = np.searchsorted(data.windows.texts.documents, range(len(data)), side="right") - 1
    kept = [document for document in DOCUMENTS if document.content.strip()]
    seen = set()
    for time in range(30):
        for row in range(len(data)):
            field = tokenizer.decode(data[time * len(data) + row]["others"]["why"]["ids"])
            whole = tokenizer.decode(
                tokenizer(kept[owner[row]].attributes["why"] or "", add_special_tokens=False).input_ids
            )
            assert field.lstrip("#") in whole, "cut between pieces, perhaps"
            seen.add((int(owner[row]), field))
    assert (1, "") in seen, "a document without the field"
    assert len([one for one in seen if one[0] == 2]) > 1, "windows of a long field take turns"


def test_a_field_that_is_no_text_or_that_none_has_is_refused(write):
    with pytest.raises(InputError, match="no document has a field 'because' with a token"):
        write(fields=("because",))
    with pytest.raises(InputError, match=r"spans of document 'a' is \[\[8, 13\], \[21, 23\]\]; expected text"):
        write(fields=("spans",))


def test_words_are_deleted_whole():
    ids = torch.arange(60).repeat(300, 1)
    attention = torch.ones_like(ids)
    attention[:50, 3:] = 0
    starts = torch.zeros_like(ids, dtype=torch.bool)
    starts[:, 1::3] = True
    batch = Batch.of(ids, attention, starts)
    left = words_left(batch, 0.6, seeded(CPU, 0))
    assert (left[:50].sum(1) == 1).all(), "the only word stays"
    for row in left[50:]:
        for first in range(1, 58, 3):
            word = row[first : min(first + 3, 59)]
            assert word.all() or not word.any()
    assert left[50:, 1:58].float().mean().item() == pytest.approx(0.4, abs=0.02)


@pytest.fixture
def cases(tmp_path):
    path = tmp_path / "cases.jsonl"
    lines = [
        {
            "_id": f"{row}",
            "text": f"{TEXTS[row % 3]} {TEXTS[2]}",
            "meta": {"why": TEXTS[(row + 1) % 3]},
            "key": [[0, 5]],
        }
        for row in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


OPTIONS = dict(max_steps=4, batch_size=4, max_length=24, save_steps=2, learning_rate=1e-3, warmup_steps=1)
CASES = {"encoder_mlm": 1.0, "field_decoder/why": {"field": "meta.why"}}


def test_a_run_over_fields_and_marks_goes_on_with_the_same_bits(base, cases, tmp_path):
    words = tmp_path / "words"
    words.write_text("green\nnight\nwalking\n")
    marked = {
        **CASES,
        "field_decoder/key": {"field": "meta.why", "marked": True, "layers": 1},
        "mirror_characters": 0.1,
    }
    options = {**OPTIONS, "objective": marked, "mask_words": str(words), "mask_spans": "key", "base": base}
    pretrain(cases, tmp_path / "whole", **options)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(cases, tmp_path / "model", on_progress=stop, **options)
    with pytest.raises(InputError, match="belongs to another run \\(mask_words: "):
        pretrain(cases, tmp_path / "model", **{**options, "mask_words": None})
    cases.write_text(cases.read_text().replace('"key": [[0, 5]]', '"key": [[0, 4]]'))
    with pytest.raises(InputError, match="belongs to another run \\(fields: "):
        pretrain(cases, tmp_path / "model", **options)
    cases.write_text(cases.read_text().replace('"key": [[0, 4]]', '"key": [[0, 5]]'))
    assert pretrain(cases, tmp_path / "model", **options).resumed_from == 2
    for name in ("model.safetensors", "heads/model.safetensors", "log.jsonl"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_pairs_of_spans_and_fields_do_not_mix(base):
    with pytest.raises(InputError, match="need pairs of spans and texts beside each text; leave one kind out"):
        PretrainConfig(base=base, objective={"span_contrast": 1.0, **CASES})
    with pytest.raises(InputError, match="field is ''; expected the name of a field"):
        pretrain("nowhere", "there", base=base, objective={"field_decoder": 1.0})


def test_adapt_says_that_it_has_no_fields(make_model, batch):
    model = make_model({"field_decoder": {"field": "why"}})
    with pytest.raises(
        InputError, match="field_decoder reads 'why' beside each text; pretrain gives it, adapt does not"
    ):
        model.loss(*batch, generator=seeded(CPU, 0))


def test_windows_are_opened_as_terms_need_them(base, write, tokenizer):
    kinds = {"mlm": TokenWindows, "mirror": Accompanied}
    for objective, kind in kinds.items():
        config = PretrainConfig(base=base, objective=objective)
        folder = write(objective, texts=config.extras.texts)
        assert isinstance(open_windows(folder, config, tokenizer), kind)
        assert (folder / "characters.npy").is_file() == (objective == "mirror")
