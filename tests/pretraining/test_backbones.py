"""Every family of encoders: embeddings, heads and training are those of transformers' own models."""

import pytest
import torch
from families import KINDS, config_of
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from indexes.errors import InputError
from pretraining import pretrain
from pretraining.backbones import Backbone
from pretraining.base import load_base, load_language_head
from pretraining.drophead import attention_outputs, dropped_heads
from pretraining.heads import VocabularyHead
from pretraining.hybrid import language_model
from pretraining.masking import MaskOptions, seeded
from pretraining.objective import Objective
from pretraining.tokens import continuations, word_starts

CPU = torch.device("cpu")


@pytest.fixture(params=KINDS)
def folder(request, tokenizer, tmp_path):
    """A masked-language model of a family, as transformers saves it."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config_of(request.param, tokenizer, initializer_range=0.2))
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def base_of(folder, objective):
    return load_base(str(folder), Objective.parse(objective), MaskOptions(), pooling=None, seed=0).model.eval()


def test_embeddings_are_what_the_model_begins_with(folder, batch):
    parts = base_of(folder, "retromae").parts
    ids, mask = batch
    hidden, layers = parts.run(ids, mask, layers=True)
    plain = parts.module(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(hidden[real], plain[real])
    torch.testing.assert_close(parts.embed(ids)[real], layers[0][real])
    vectors = parts.words[ids]
    rows = torch.arange(ids.shape[1])[None].expand_as(ids)
    if parts.family.types or not parts.has_positions:
        torch.testing.assert_close(parts.embed_vectors(vectors, rows)[real], layers[0][real])
    assert len(layers) == 3


def test_a_random_token_moves_no_position(folder, batch):
    """Left to itself RoBERTa counts positions up to the tokens that are no padding."""
    parts = base_of(folder, "mlm").parts
    ids = batch[0][:1].clone()
    mask = torch.ones_like(ids)
    changed = ids.clone()
    changed[0, 2] = parts.config.pad_token_id
    before, after = parts.embed(ids), parts.embed(changed)
    assert torch.equal(before[0, 3:], after[0, 3:])
    assert parts.run(changed, mask)[0].isfinite().all()


def test_the_head_is_loaded_as_the_model_has_it(folder, batch):
    model = base_of(folder, "mlm")
    assert model.untrained_heads == []
    legacy = {"legacy": model.backbone.config.legacy} if hasattr(model.backbone.config, "legacy") else {}
    whole = AutoModelForMaskedLM.from_pretrained(folder, **legacy).eval()
    ids, mask = batch
    hidden, _ = model.parts.run(ids, mask)
    with torch.no_grad():
        ours, theirs = model.head(hidden, model.parts.words), whole(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["dupmae", "retromae", "cocondenser", "cotmae", "lexmae"])
def test_objectives_reach_every_weight(folder, batch, objective):
    model = base_of(folder, objective)
    ids, mask = (torch.cat((each, each[:1])) for each in batch)
    losses = model.loss(ids, mask, generator=seeded(CPU, 0))
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    without = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and (value.grad is None or not value.grad.isfinite().all())
    ]
    assert without == []


def test_what_was_trained_is_loaded_by_sentence_transformers(folder, corpus, tmp_path):
    options = {"objective": "dupmae", "max_steps": 2, "batch_size": 4, "max_length": 16, "learning_rate": 1e-2}
    card = pretrain(corpus, tmp_path / "model", base=folder, **options).card
    assert card["untrained_heads"] == ["decoder_mlm"]
    vectors = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["river stone", "music"])
    assert vectors.shape == (2, 16)
    again = base_of(tmp_path / "model", "dupmae")
    assert again.untrained_heads == []


def test_a_model_without_a_head_says_so(folder, tmp_path):
    model = base_of(folder, "mlm")
    model.backbone.save_pretrained(tmp_path / "plain")
    head = VocabularyHead(model.backbone.config)
    assert not load_language_head(head, tmp_path / "plain", model.backbone.config.model_type)


def test_embeddings_of_another_width_are_refused(tokenizer):
    config = config_of("deberta-v2", tokenizer, embedding_size=8)
    with pytest.raises(InputError, match="embeddings have 8 dimensions and its layers 16"):
        Backbone(AutoModelForMaskedLM.from_config(config).deberta)


class Pieces:
    """A tokenizer of these pieces."""

    all_special_ids = (0,)

    def __init__(self, *pieces):
        self.pieces = pieces

    def get_vocab(self):
        return {piece: number for number, piece in enumerate(self.pieces)}


def test_the_mark_that_most_pieces_have_counts():
    wordpiece = Pieces("[CLS]", "Ġawda", "Ġobon", "walk", "##ing", "##s", "##er")
    assert continuations(wordpiece).tolist() == [False, False, False, False, True, True, True]
    pairs = Pieces("<s>", "##", "####", "Ġwalk", "Ġing", "Ġs", "er")
    assert continuations(pairs).tolist() == [False, True, True, False, False, False, True]


def test_words_begin_where_the_tokenizer_says():
    specials = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>"}
    pieces = ["<s>", "</s>", "<mask>", "<pad>", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "Ġ", "Ġa", "Ġb"])}
    pairs = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("Ġ", "b")]))
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    scored = [(piece, 0.0 if len(piece) > 1 else -5.0) for piece in [*pieces, "▁", "▁a", "▁b"]]
    unigram = Tokenizer(models.Unigram(scored, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    for engine in (pairs, unigram):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, **specials)
        encoding = engine.encode("abc bc", add_special_tokens=False)
        continued = continuations(tokenizer)
        assert encoding.tokens[1:3] == ["b", "c"], encoding.tokens
        expected = [True, False, False, True, False]
        assert (~continued[encoding.ids]).tolist() == expected
        assert word_starts(encoding.ids, encoding.word_ids, continued).tolist() == expected
        assert not continued[tokenizer.all_special_ids].any()


def test_a_language_model_is_made_of_encoder_and_head(folder, batch):
    model = base_of(folder, "mlm")
    ids, mask = batch
    hidden = model.parts.run(ids, mask)[0]
    expected = model.head.transform(hidden) @ model.parts.words.T + model.head.bias
    made = language_model(model.backbone, model.head)
    real = mask.bool()
    torch.testing.assert_close(made(input_ids=ids, attention_mask=mask).logits[real], expected[real])


def test_heads_of_every_family_are_found(folder, batch, monkeypatch):
    """Striking out every head leaves what attention's biases and residuals say, in each layer."""
    model = base_of(folder, "mirror-words")
    parts = model.parts
    assert len(attention_outputs(parts.module)) == parts.config.num_hidden_layers
    monkeypatch.setattr("pretraining.drophead.head_weights", lambda texts, heads, *_: torch.zeros(texts, heads))
    with dropped_heads(parts, 0.5):
        dropped = parts.run(*batch)[0]
    for output in attention_outputs(parts.module):
        torch.nn.init.zeros_(output.weight)
    torch.testing.assert_close(dropped, parts.run(*batch)[0])
