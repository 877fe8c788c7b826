"""Replaced language modelling with a bottleneck: SimLM (Wang et al. 2023, arXiv 2207.02578)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pretraining.backbones import Backbone
from pretraining.generator import Generator
from pretraining.masking import Batch, MaskOptions, Masks, Vocabulary, check_share, draw_places, more_places
from pretraining.terms.parts import Part
from pretraining.terms.term import PlainDecoder, Term, embedded_text, own_positions
from pretraining.view import EncoderView, sentence_vector

_BERT_LIKE = ("bert", "roberta", "xlm-roberta")


class ReplacedLM(Term):
    """Encoder and decoder both restore texts in which a frozen generator has replaced tokens: a pass of its own.

    The decoder's texts have more tokens replaced, among them the encoder's places, each drawn anew. Its input is the
    sentence vector and its text, embedded; its layers begin as copies of the encoder's last ones, where those are
    BERT's, and as random numbers elsewhere. The loss is the mean cross-entropy over all of a text's tokens, replaced or
    not, of the encoder and of the decoder, summed.

    Args:
        backbone: The encoder.
        generator: A masked-language model with the same vocabulary: a folder, or a name of the hub.
        ratio: Share of tokens, specials included, that the encoder's texts have replaced, by whole words.
        decoder_ratio: That of the decoder's.
        layers: Of the decoder.
    """

    has_bottleneck: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        generator: str = "",
        ratio: float = 0.3,
        decoder_ratio: float = 0.5,
        layers: int = 2,
    ) -> None:
        super().__init__(backbone)
        check_share("decoder_ratio", decoder_ratio, 0.9)
        check_share("ratio", ratio, decoder_ratio)
        self.options, self.decoder_ratio = MaskOptions(ratio), decoder_ratio
        self.generator = Generator(generator)
        self.decoder = PlainDecoder(backbone, layers)
        self.starts_untrained = not copy_last_layers(backbone, self.decoder)
        self.positions = own_positions(backbone)

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> tuple[Part, Part]:
        """Draw the encoder's texts and the decoder's."""
        places = draw_places(Batch(batch.ids, batch.attention_mask, batch.words), self.options, generator)
        more = more_places(batch, places, self.decoder_ratio, generator)
        one, other = (
            Part(
                self.generator.fill(batch.ids, batch.attention_mask, where, vocabulary, generator), batch.attention_mask
            )
            for where in (places, more)
        )
        return one, other

    def forward(self, view: EncoderView, drawn: tuple[Part, Part]) -> Tensor:
        """The loss, one number."""
        encoded, decoded = drawn
        batch, words = view.batch, view.backbone.words
        content = batch.content
        hidden = view.backbone.run(*encoded)[0]
        vectors = view.bottleneck(sentence_vector(hidden, batch.attention_mask, view.pooling))
        text = embedded_text(view.backbone, decoded.ids, self.positions)
        states = self.decoder(torch.cat((vectors[:, None], text[:, 1:]), 1), batch.attention_mask)
        wanted = batch.ids[content]
        return view.head.loss(hidden[content], wanted, words) + view.head.loss(states[content], wanted, words)


def copy_last_layers(backbone: Backbone, decoder: nn.ModuleList) -> bool:
    """Give plain layers the weights of as many of an encoder's last ones, if there are so many of BERT's kind."""
    if backbone.config.model_type not in _BERT_LIKE or len(decoder) > backbone.config.num_hidden_layers:
        return False
    for mine, theirs in zip(decoder, backbone.module.encoder.layer[-len(decoder) :], strict=True):
        mine.load_state_dict(theirs.state_dict())
    return True
