"""Loss terms, one family a file, by the names that objectives use."""

from pretraining.terms.bag_of_words import BagOfWords, ClsBagOfWords
from pretraining.terms.condenser import Condenser
from pretraining.terms.crops import CropContrast
from pretraining.terms.detection import ReplacedDetection, SwappedLM
from pretraining.terms.fields import FieldDecoder
from pretraining.terms.lexmae import LexiconBottleneck
from pretraining.terms.masked_lm import EncoderMLM
from pretraining.terms.mirror import MirrorCharacters, MirrorWords
from pretraining.terms.retromae import DecoderMLM
from pretraining.terms.simcse import DropoutContrast
from pretraining.terms.simlm import ReplacedLM
from pretraining.terms.spans import SpanContrast, SpanDecoder
from pretraining.terms.term import Term
from pretraining.terms.tsdae import Denoising

TERMS: dict[str, type[Term]] = {
    "encoder_mlm": EncoderMLM,
    "bag_of_words_cls": ClsBagOfWords,
    "bag_of_words": BagOfWords,
    "decoder_mlm": DecoderMLM,
    "condenser_mlm": Condenser,
    "span_contrast": SpanContrast,
    "span_decoder": SpanDecoder,
    "field_decoder": FieldDecoder,
    "replaced_lm": ReplacedLM,
    "denoising": Denoising,
    "lexicon_bottleneck": LexiconBottleneck,
    "dropout_contrast": DropoutContrast,
    "mirror_characters": MirrorCharacters,
    "mirror_words": MirrorWords,
    "crop_contrast": CropContrast,
    "replaced_detection": ReplacedDetection,
    "swapped_lm": SwappedLM,
}
