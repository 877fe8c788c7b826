"""Each term equals a slow float64 computation written from its formula, in value and in every gradient."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from indexes.errors import InputError
from pretraining.masking import IGNORED, Batch, MaskOptions, seeded
from pretraining.model import PretrainingModel
from pretraining.objective import PRESETS, Objective
from pretraining.terms import TERMS
from pretraining.terms.crops import crop
from pretraining.terms.simcse import nt_xent
from pretraining.terms.spans import span_contrast

CPU = torch.device("cpu")


def encode(model, ids, mask, *, layers=False):
    output = model.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=layers)
    return output.hidden_states if layers else output.last_hidden_state


def dense_logits(model, rows):
    return model.head.transform(rows) @ model.parts.words.T + model.head.bias


def mean_loss(model, rows, labels):
    """Mean over labelled positions of -log softmax, one position after the other."""
    losses = []
    for text, place in (labels != IGNORED).nonzero().tolist():
        losses.append(-dense_logits(model, rows[text, place]).log_softmax(-1)[labels[text, place]])
    return torch.stack(losses).mean()


def vectors_of(model, hidden, mask):
    if model.pooling == "cls":
        return hidden[:, 0]
    return torch.stack([line[: int(real.sum())].mean(0) for line, real in zip(hidden, mask, strict=True)])


def plain_layers(decoder, first, rest, mask):
    """Each text alone, without its padding, through layers that see everything."""
    out = []
    for text in range(len(mask)):
        length = int(mask[text].sum())
        states = torch.cat((first[text, None], rest[text, 1:length]))[None]
        for layer in decoder:
            states = layer(states)
        out.append(functional.pad(states[0], (0, 0, 0, mask.shape[1] - length)))
    return torch.stack(out)


def text_words(batch, text):
    return batch.ids[text, 1 : int(batch.attention_mask[text].sum()) - 1]


def encoder_mlm(model, drawn):
    hidden = encode(model, drawn.masks.masked_ids, drawn.batch.attention_mask)
    return mean_loss(model, hidden, drawn.masks.labels)


def bag_of_words_cls(model, drawn):
    mask = drawn.batch.attention_mask
    hidden = encode(model, drawn.masks.masked_ids, mask)
    losses = []
    for text in range(len(mask)):
        rows = hidden[text, :1] if model.pooling == "cls" else hidden[text, : int(mask[text].sum())]
        logits = dense_logits(model, rows).mean(0).log_softmax(-1)
        wanted = [word for word in text_words(drawn.batch, text).unique().tolist() if not model.special[word]]
        losses.append(-torch.stack([logits[word] for word in wanted]).mean() if wanted else logits.sum() * 0)
    return torch.stack(losses).mean()


def bag_of_words(model, drawn):
    paper = model.terms["bag_of_words"].variant == "paper"
    mask = drawn.batch.attention_mask
    hidden = encode(model, drawn.masks.masked_ids, mask)
    losses = []
    for text in range(len(mask)):
        end = int(mask[text].sum())
        if paper:
            kept = [place for place in range(1, end - 1) if drawn.masks.labels[text, place] == IGNORED] or [0]
            logits = (hidden[text, kept] @ model.parts.words.T).max(0).values.log_softmax(-1)
        else:
            logits = dense_logits(model, hidden[text, 1:end]).max(0).values.log_softmax(-1)
        words = text_words(drawn.batch, text)
        loss = -logits[words.unique()].sum()
        losses.append(loss if paper else loss / len(words))
    return torch.stack(losses).mean()


def condenser_mlm(model, drawn):
    term, mask = model.terms["condenser_mlm"], drawn.batch.attention_mask
    layers = encode(model, drawn.masks.masked_ids, mask, layers=True)
    vectors = vectors_of(model, layers[-1], mask)
    states = plain_layers(term.decoder, vectors, layers[term.skip_from], mask)
    return mean_loss(model, states, drawn.masks.labels)


def span_contrast_loss(model, drawn):
    mask = drawn.batch.attention_mask
    vectors = vectors_of(model, encode(model, drawn.masks.masked_ids, mask), mask)
    losses = []
    for one in range(len(vectors)):
        others = [other for other in range(len(vectors)) if other != one]
        scores = torch.stack([vectors[one] @ vectors[other] for other in others]).log_softmax(0)
        losses.append(-scores[others.index(one ^ 1)])
    return torch.stack(losses).mean()


def span_decoder(model, drawn):
    term, mask, masks = model.terms["span_decoder"], drawn.batch.attention_mask, drawn.terms["span_decoder"]
    vectors = vectors_of(model, encode(model, drawn.masks.masked_ids, mask), mask)
    embedded = model.backbone.embeddings(input_ids=masks.masked_ids)
    states = plain_layers(term.decoder, vectors[[1, 0, 3, 2]], embedded, mask)
    return mean_loss(model, states, masks.labels)


def lexicon_bottleneck(model, drawn):
    term, mask, masks = model.terms["lexicon_bottleneck"], drawn.batch.attention_mask, drawn.terms["lexicon_bottleneck"]
    hidden = encode(model, drawn.masks.masked_ids, mask)
    fixed = model.parts.words.detach()
    mixtures = []
    for text in range(len(mask)):
        logits = dense_logits(model, hidden[text, 1 : int(mask[text].sum()) - 1]).max(0).values
        mixtures.append(sum(share * word for share, word in zip(logits.softmax(0), fixed, strict=True)))
    embedded = model.backbone.embeddings(input_ids=masks.masked_ids)
    states = plain_layers(term.decoder, torch.stack(mixtures), embedded, mask)
    losses = []
    for text, place in (masks.labels != IGNORED).nonzero().tolist():
        row = term.transform(states[text, place]) @ model.parts.words.T + model.head.bias
        losses.append(-row.log_softmax(-1)[masks.labels[text, place]])
    return torch.stack(losses).mean()


def dropout_contrast(model, drawn):
    batch = drawn.batch
    both = [vectors_of(model, encode(model, batch.ids, batch.attention_mask), batch.attention_mask) for _ in range(2)]
    vectors = [vector / vector.norm() for vector in torch.cat(both)]
    losses = []
    for one, vector in enumerate(vectors):
        others = [other for other in range(len(vectors)) if other != one]
        scores = (
            torch.stack([vector @ vectors[other] for other in others]) / model.terms["dropout_contrast"].temperature
        )
        losses.append(-scores.log_softmax(0)[others.index((one + len(both[0])) % len(vectors))])
    return torch.stack(losses).mean()


def contrast(one, other, temperature):
    """SimCLR's loss, one anchor after the other."""
    vectors = [vector / vector.norm() for vector in torch.cat((one, other))]
    losses = []
    for anchor, vector in enumerate(vectors):
        others = [place for place in range(len(vectors)) if place != anchor]
        scores = torch.stack([vector @ vectors[place] for place in others]) / temperature
        losses.append(-scores.log_softmax(0)[others.index((anchor + len(one)) % len(vectors))])
    return torch.stack(losses).mean()


def mirror_words(model, drawn):
    mask = drawn.batch.attention_mask
    texts = drawn.batch.ids, drawn.terms["mirror_words"]
    vectors = [vectors_of(model, encode(model, ids, mask), mask) for ids in texts]
    return contrast(*vectors, model.terms["mirror_words"].temperature)


def mirror_characters(model, drawn):
    texts = drawn.batch, drawn.batch.others["masked"]
    vectors = [vectors_of(model, encode(model, one.ids, one.attention_mask), one.attention_mask) for one in texts]
    return contrast(*vectors, model.terms["mirror_characters"].temperature)


def field_decoder(model, drawn):
    field, masks = drawn.batch.others["reason"], drawn.terms["field_decoder"]
    mask = drawn.batch.attention_mask
    vectors = vectors_of(model, encode(model, drawn.masks.masked_ids, mask), mask)
    embedded = model.backbone.embeddings(input_ids=masks.masked_ids)
    states = plain_layers(model.terms["field_decoder"].decoder, vectors, embedded, field.attention_mask)
    return mean_loss(model, states, masks.labels)


def all_tokens(model, states, batch):
    """Mean over the texts' own tokens, specials left out."""
    labels = torch.full_like(batch.ids, IGNORED)
    for text in range(len(labels)):
        labels[text, 1 : int(batch.attention_mask[text].sum()) - 1] = text_words(batch, text)
    return mean_loss(model, states, labels)


def replaced_lm(model, drawn):
    one, other = drawn.terms["replaced_lm"]
    hidden = encode(model, *one)
    embedded = model.backbone.embeddings(input_ids=other.ids)
    vectors = vectors_of(model, hidden, one.attention_mask)
    states = plain_layers(model.terms["replaced_lm"].decoder, vectors, embedded, other.attention_mask)
    return all_tokens(model, hidden, drawn.batch) + all_tokens(model, states, drawn.batch)


def denoising(model, drawn):
    """A BERT decoder of transformers, with cross-attention of one vector, one text and one token after the other."""
    term, left = model.terms["denoising"], drawn.terms["denoising"]
    vectors = vectors_of(model, encode(model, *left), left.attention_mask)
    losses = []
    for text, mask in enumerate(drawn.batch.attention_mask):
        ids = drawn.batch.ids[text, : int(mask.sum())]
        for end in range(1, len(ids)):
            states = model.backbone.embeddings(input_ids=ids[None, :end])
            for layer, crossing in zip(model.backbone.encoder.layer, term.crossings, strict=True):
                heads = 2
                own = layer.attention.self
                q, k, v = (part(states[0]).unflatten(-1, (heads, -1)) for part in (own.query, own.key, own.value))
                rows = []
                for place in range(end):
                    scores = torch.einsum("hd,lhd->hl", q[place], k[: place + 1]) / q.shape[-1] ** 0.5
                    rows.append(torch.einsum("hl,lhd->hd", scores.softmax(-1), v[: place + 1]).flatten())
                states = layer.attention.output(torch.stack(rows)[None], states)
                states = crossing.LayerNorm(states + crossing.dense(crossing.value(vectors[text])))
                states = layer.output(layer.intermediate(states), states)
            losses.append(-dense_logits(model, states[0, -1]).log_softmax(-1)[ids[end]])
    return torch.stack(losses).mean()


def replaced_detection(model, drawn):
    term, replaced = model.terms["replaced_detection"], drawn.terms["replaced_detection"]
    hidden = encode(model, replaced.ids, drawn.batch.attention_mask)
    losses = []
    for text, mask in enumerate(drawn.batch.attention_mask):
        for place in range(1, int(mask.sum()) - 1):
            score = term.score(functional.gelu(term.dense(hidden[text, place])))[0]
            changed = replaced.ids[text, place] != drawn.batch.ids[text, place]
            losses.append(-torch.log(torch.sigmoid(score if changed else -score)))
    return torch.stack(losses).mean()


def word_set_order(model, drawn):
    """Each pair alone, without padding: [CLS] words [SEP] document [SEP]."""
    term, batch = model.terms["word_set_order"], drawn.batch
    order, guessed = [], {"better": [], "worse": []}
    for text in range(len(batch.ids)):
        length = int(batch.attention_mask[text].sum())
        scores = []
        for name, losses in guessed.items():
            words = batch.others[name]
            first = words.ids[text, : int(words.attention_mask[text].sum())]
            if len(first) == 2:
                continue
            ids = torch.cat((first, drawn.masks.masked_ids[text, 1:length]))
            types = torch.cat((torch.zeros_like(first), torch.ones(length - 1, dtype=torch.long)))
            hidden = model.backbone(input_ids=ids[None], token_type_ids=types[None]).last_hidden_state[0]
            scores.append(term.score(torch.tanh(term.dense(hidden[0])))[0])
            for place in range(1, length):
                label = drawn.masks.labels[text, place]
                if label != IGNORED:
                    row = hidden[len(first) + place - 1]
                    losses.append(-dense_logits(model, row).log_softmax(-1)[label])
        if scores:
            apart = scores[0] - scores[1]
            order.append(-torch.log(torch.sigmoid(apart)) if term.loss == "logistic" else (1 - apart).relu())
    return torch.stack(order).mean() + sum(torch.stack(losses).mean() for losses in guessed.values()) / 2


def swapped_lm(model, drawn):
    masks = drawn.terms["swapped_lm"]
    return mean_loss(model, encode(model, masks.masked_ids, drawn.batch.attention_mask), masks.labels)


ORACLES = {
    "mirror_words": mirror_words,
    "mirror_characters": mirror_characters,
    "field_decoder": field_decoder,
    "replaced_lm": replaced_lm,
    "denoising": denoising,
    "replaced_detection": replaced_detection,
    "swapped_lm": swapped_lm,
    "word_set_order": word_set_order,
    "encoder_mlm": encoder_mlm,
    "bag_of_words_cls": bag_of_words_cls,
    "bag_of_words": bag_of_words,
    "condenser_mlm": condenser_mlm,
    "span_contrast": span_contrast_loss,
    "span_decoder": span_decoder,
    "lexicon_bottleneck": lexicon_bottleneck,
    "dropout_contrast": dropout_contrast,
}


def test_every_term_has_an_oracle_here_or_in_the_authors_code():
    assert {*ORACLES, "decoder_mlm", "crop_contrast"} == set(TERMS)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ORACLES),
        ("bag_of_words", {"variant": "paper"}),
        ("condenser_mlm", {"skip_from": 1}),
        ("field_decoder", {"marked": True}),
        ("word_set_order", {"loss": "hinge"}),
        ("replaced_detection", {"source": "generator"}),
        ("replaced_detection", {"source": "cluster", "clusters": 5, "ratio": 0.5}),
    ],
)
def test_a_term_is_its_formula(make_model, pairs, beside, base, name, options, pooling):
    if name == "replaced_lm" or options.get("source") == "generator":
        options = {**options, "generator": str(base), "ratio": 0.4}
    options = {"field": "reason", **options} if name == "field_decoder" else options
    model = make_model({name: {"weight": 1.0, **options}}, pooling=pooling, num_hidden_layers=2).double()
    drawn = model.sample(*pairs, generator=seeded(CPU, 3), others=beside)
    losses = model(drawn)
    losses["total"].backward()
    ours = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    expected = ORACLES[name](model, drawn)
    expected.backward()
    assert losses[name].item() == pytest.approx(expected.item(), rel=1e-6)
    for key, value in model.named_parameters():
        theirs = torch.zeros_like(value) if value.grad is None else value.grad
        mine = ours.get(key, torch.zeros_like(value))
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_learn(make_model, pairs, beside, name):
    torch.manual_seed(0)
    model = make_model(name, num_hidden_layers=2, hidden_dropout_prob=0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for step in range(40):
        loss = model(model.sample(*pairs, generator=seeded(CPU, step), others=beside))["total"]
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(values[-5:]) < 0.7 * sum(values[:5])


def test_what_a_term_draws_does_not_depend_on_the_others(make_model, pairs):
    alone = make_model({"span_decoder": 1.0}).sample(*pairs, generator=seeded(CPU, 1))
    mixed = make_model({"decoder_mlm": 1.0, "span_decoder": 1.0}).sample(*pairs, generator=seeded(CPU, 1))
    assert torch.equal(alone.masks.masked_ids, mixed.masks.masked_ids)
    assert torch.equal(alone.terms["span_decoder"].masked_ids, mixed.terms["span_decoder"].masked_ids)
    assert not torch.equal(alone.terms["span_decoder"].labels, alone.masks.labels)


def test_lexmaes_decoder_guesses_all_that_the_encoder_does_and_more(make_model, pairs):
    model = make_model({"lexicon_bottleneck": {"ratio": 0.8}}, masks=MaskOptions(0.2))
    drawn = model.sample(*pairs, generator=seeded(CPU, 1))
    for seed in range(5):
        drawn = model.sample(*pairs, generator=seeded(CPU, seed))
        encoder, decoder = (one.labels != IGNORED for one in (drawn.masks, drawn.terms["lexicon_bottleneck"]))
        assert (decoder | ~encoder).all()
        assert decoder.sum() > encoder.sum()


def test_crops_are_told_from_others_and_from_earlier_ones(make_model, pairs):
    options = {"momentum": 0.75, "queue": 6, "temperature": 0.5}
    model = make_model({"crop_contrast": options}, pooling="mean").double().train()
    term, slow = model.terms["crop_contrast"], copy.deepcopy(model.terms["crop_contrast"].slow)
    assert model.untrained_heads == []
    waiting = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        drawn = model.sample(*pairs, generator=seeded(CPU, step))
        loss = model(drawn)["total"]
        for mine, theirs in zip(slow.parameters(), model.backbone.parameters(), strict=True):
            mine.data = 0.75 * mine + 0.25 * theirs.detach()
        one, other = drawn.terms["crop_contrast"]
        queries = vectors_of(model, encode(model, *one), one.attention_mask)
        keys = vectors_of(model, slow(other.ids, other.attention_mask).last_hidden_state.detach(), other.attention_mask)
        negatives = torch.stack([*keys, *waiting[-6:]])
        scores = (queries @ negatives.T / 0.5).log_softmax(1)
        expected = -torch.stack([scores[text, text] for text in range(len(queries))]).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        waiting += list(keys)
        held, expected_rows = (torch.stack(list(rows)) for rows in (term.waiting[: len(waiting)], waiting[-6:]))
        torch.testing.assert_close(held.sort(0).values, expected_rows.sort(0).values)
        gradients = torch.autograd.grad(expected, list(model.backbone.parameters()), allow_unused=True)
        optimizer.zero_grad()
        loss.backward()
        for value, gradient in zip(model.backbone.parameters(), gradients, strict=True):
            if gradient is not None:
                torch.testing.assert_close(value.grad, gradient)
        optimizer.step()
    kept = term.waiting.clone()
    model.eval()
    model(model.sample(*pairs, generator=seeded(CPU, 9)))
    assert torch.equal(kept, term.waiting), "measuring changes nothing"


def test_a_crop_is_a_run_of_which_some_tokens_are_left_out():
    ids = torch.arange(64).repeat(200, 1)
    attention = torch.ones_like(ids)
    attention[100:, 40:] = 0
    batch = Batch.of(ids, attention, torch.ones_like(ids, dtype=torch.bool))
    found = crop(batch, (0.1, 0.5), 0.0, seeded(CPU, 1))
    for text, (line, mask) in enumerate(zip(found.ids, found.attention_mask, strict=True)):
        tokens = line[mask.bool()].tolist()
        length = 62 if text < 100 else 38
        assert (tokens[0], tokens[-1]) == (0, length + 1)
        assert tokens[1:-1] == list(range(tokens[1], tokens[-2] + 1))
        assert int(0.1 * length) <= len(tokens) - 2 <= 0.5 * length
    thinned = crop(batch, (1.0, 1.0), 0.25, seeded(CPU, 1))
    counts = thinned.attention_mask.sum(1) - 2
    assert counts[:100].float().mean().item() == pytest.approx(62 * 0.75, rel=0.05)
    nothing_left = crop(batch, (0.05, 0.1), 1 - 1e-9, seeded(CPU, 2))
    assert (nothing_left.attention_mask.sum(1) == 3).all()


def test_a_row_sees_no_piece_of_its_own_word_if_that_is_asked(make_model, batch):
    leaks = []
    for hide_word in (False, True):
        model = make_model({"decoder_mlm": {"hide_word": hide_word, "ratio": 0.1}})
        drawn = model.sample(*batch, generator=seeded(CPU, 1))
        rows, words = drawn.terms["decoder_mlm"], drawn.batch.words
        own = words.gather(1, rows.rows)[..., None] == words[:, None]  # (b, r, t)
        leaks.append(int((rows.visible & own & rows.real[..., None] & (words[:, None] >= 0)).sum()))
    assert leaks[0] > 0
    assert leaks[1] == 0


def test_spans_come_in_pairs(make_model, pairs):
    model = make_model("cocondenser")
    with pytest.raises(InputError, match="a batch has 3 texts; its terms need spans in pairs"):
        model.loss(pairs[0][:3], pairs[1][:3], generator=seeded(CPU, 1))


def test_equal_vectors_are_told_apart_by_chance():
    same = torch.ones(6, 4)
    assert span_contrast(same).item() == pytest.approx(math.log(5))
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(11))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("best", "objective is 'best'; expected mlm, bowdpr, retromae"),
        ({}, "objective has no term"),
        ({"mlm": 1.0}, "objective has 'mlm'; expected terms among encoder_mlm"),
        ({"encoder_mlm": 0.0}, "weight of encoder_mlm is 0.0; expected a number above 0"),
        ({"encoder_mlm": "much"}, "encoder_mlm is 'much'; expected a weight"),
        ({"encoder_mlm": {"variant": "x"}}, "encoder_mlm has no option 'variant'; it has none"),
        ({"bag_of_words": {"kind": "x"}}, "bag_of_words has no option 'kind'; it has variant"),
        ({"encoder_mlm": {"schedule": "cosine"}}, "a schedule or an end_weight, not both"),
        ({"encoder_mlm": {"schedule": "zigzag", "end_weight": 1.0}}, "schedule of encoder_mlm is 'zigzag'"),
        ("encoder_mlm=1,decoder_mlm", "'decoder_mlm'; expected TERM=WEIGHT"),
        ("encoder_mlm=1,encoder_mlm=2", "has a term twice"),
        ({"encoder_mlm": {"weight": "1"}}, "weight of encoder_mlm is 1; expected a number"),
        ({"encoder_mlm": {"end_weight": -1, "schedule": "linear"}}, "end_weight of encoder_mlm is -1; expected 0 or"),
        ({"condenser_mlm": {"layers": "two"}}, "condenser_mlm's layers is 'two'; expected something like 2"),
        ({"condenser_mlm": {"skip_from": 1.5}}, "condenser_mlm's skip_from is 1.5; expected something like None"),
        ({"decoder_mlm": {"hide_word": 1}}, "decoder_mlm's hide_word is 1; expected something like False"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Objective.parse(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bag_of_words": {"variant": "x"}}, "variant is 'x'; expected code or paper"),
        ({"decoder_mlm": {"query": "x"}}, "query is 'x'; expected raw or embedded"),
        ({"decoder_mlm": {"ratio": 0.95}}, "ratio is 0.95; expected a share above 0 and at most 0.9"),
        ({"decoder_mlm": {"pool": 0}}, "pool is 0; expected at least 1 mask"),
        ({"condenser_mlm": {"skip_from": 3}}, "skip_from is 3; expected 1 to 1"),
        ({"condenser_mlm": {"layers": 0}}, "layers is 0; expected 1 to 12"),
        ({"dropout_contrast": {"temperature": 0}}, "temperature is 0; expected above 0"),
        ({"crop_contrast": {"momentum": 1}}, "momentum is 1; expected at least 0 and below 1"),
        ({"crop_contrast": {"queue": 0}}, "queue is 0; expected at least 1"),
        ({"crop_contrast": {"shortest": 0.6}}, "shortest is 0.6; expected a share above 0 and at most 0.5"),
        ({"crop_contrast": {"deleted": 1.0}}, "deleted is 1.0; expected at least 0 and below 1"),
    ],
)
def test_options_out_of_range_are_refused(make_model, given, message):
    with pytest.raises(InputError, match=message):
        make_model(given)


def test_objectives_may_be_written_in_one_line(make_model):
    written = Objective.parse("encoder_mlm=1, bag_of_words_cls=0.5")
    assert written == Objective.parse({"encoder_mlm": 1.0, "bag_of_words_cls": {"weight": 0.5}})
    assert Objective.parse(written) is written
    assert written.record() == {"encoder_mlm": {"weight": 1.0}, "bag_of_words_cls": {"weight": 0.5}}
    with pytest.raises(InputError, match="row_fraction is an option of decoder_mlm, which the objective has not"):
        written.with_option("decoder_mlm", "row_fraction", 0.5)


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.775), ("cosine", 1 - 0.9 * (1 - 2**-0.5) / 2)])
def test_weights_follow_their_schedule(make_model, pairs, schedule, middle):
    term = {"weight": 1.0, "end_weight": 0.1, "schedule": schedule}
    model = make_model({"encoder_mlm": term, "bag_of_words_cls": 0.5}).eval()
    drawn = model.sample(*pairs, generator=seeded(CPU, 1))
    for progress, weight in ((0.0, 1.0), (0.25, middle), (1.0, 0.1)):
        model.progress = progress
        losses = model(drawn)
        total = weight * losses["encoder_mlm"] + 0.5 * losses["bag_of_words_cls"]
        assert losses["total"].item() == pytest.approx(total.item(), rel=1e-6)


def test_gradient_norms_are_those_of_each_term_alone(make_model, pairs):
    model = make_model({"encoder_mlm": 1.0, "condenser_mlm": 2.0, "span_contrast": 0.5}, num_hidden_layers=2)
    drawn = model.sample(*pairs, generator=seeded(CPU, 1))
    model(drawn)["total"].backward()
    together = {name: value.item() for name, value in model.gradient_norms.items()}
    for name, term in model.objective.terms.items():
        view = model.view(drawn)
        hidden, layers = view._pass
        value = term.weight * model.terms[name](view, drawn.terms[name])
        asked = [hidden, *layers[:-1]]
        gradients = [one for one in torch.autograd.grad(value, asked, allow_unused=True)[:2] if one is not None]
        if name == "condenser_mlm":
            direct = torch.autograd.grad(
                term.weight * model.terms[name](view.observed(lambda _: None), None), hidden, retain_graph=True
            )
            assert together[name] > direct[0].norm().item()
        else:
            assert together[name] == pytest.approx(gradients[0].norm().item(), rel=1e-5)


def test_a_shared_backbone_is_trained_and_keeps_its_identity(make_model, tokenizer, batch):
    backbone = make_model().backbone
    model = PretrainingModel(backbone, tokenizer, "dupmae")
    assert model.backbone is backbone
    starts = torch.ones_like(batch[0], dtype=torch.bool)
    model.loss(*batch, starts, generator=seeded(CPU, 0, 0, 0, 0))["total"].backward()
    assert backbone.embeddings.word_embeddings.weight.grad.norm() > 0
    addresses = [value.data_ptr() for value in model.state_dict().values()]
    assert len(addresses) == len(set(addresses))  # nothing is stored twice
