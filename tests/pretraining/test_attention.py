"""The first token's attention: what transformers' own eager attention gives, for every family that can be read."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from indexes.errors import InputError
from pretraining.attention import READABLE, first_token_attention, refuse_unreadable
from pretraining.backbones import FAMILIES, Backbone

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 0,
    "max_position_embeddings": 60, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    "type_vocab_size": 2, "dim": 16, "n_heads": 2, "n_layers": 3, "hidden_dim": 32, "initializer_range": 0.5,
}  # fmt: skip
GLOBAL, LOCAL = "full_attention", "sliding_attention"
KINDS = {
    **{kind: {} for kind in READABLE},
    "mpnet": {"pad_token_id": 1},  # its embeddings count positions from 2 on, whatever the padding token is
    "modernbert, its last layer local": {"layer_types": [GLOBAL, GLOBAL, LOCAL], "local_attention": 8},
    "modernbert, its last layer global": {"layer_types": [LOCAL, LOCAL, GLOBAL], "local_attention": 8},
}


def model_of(kind, attention, **changes):
    family = kind.partition(",")[0]
    known = AutoConfig.for_model(family)
    sizes = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    config = AutoConfig.for_model(family, **{**sizes, "vocab_size": 50, **KINDS.get(kind, {}), **changes})
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation=attention).eval()
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.2)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_that_of_eager_attention(kind):
    eager, fast = model_of(kind, "eager"), model_of(kind, "sdpa" if kind != "mpnet" else None)
    fast.load_state_dict(eager.state_dict())
    ids = torch.randint(3, 50, (4, 40), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(40) < torch.tensor([40, 31, 7, 2])[:, None]).long()
    ids = torch.where(mask.bool(), ids, eager.config.pad_token_id)
    expected = eager(input_ids=ids, attention_mask=mask, output_attentions=True).attentions[-1][:, :, 0].mean(1)
    backbone = Backbone(fast)
    found = first_token_attention(backbone, ids, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    assert (found[~mask.bool()] == 0).all()
    assert found[0].max() > 2 * found[0][found[0] > 0].min(), "far from uniform, or this would show little"
    assert (found[0, 5:] == 0).all() == ("local" in kind)
    assert not any(module._forward_hooks for module in fast.modules()), "nothing is overheard any more"


def test_what_cannot_be_read_is_refused():
    assert set(FAMILIES) - set(READABLE) == {"deberta-v2"}
    backbone = Backbone(model_of("deberta-v2", "eager"))
    with pytest.raises(
        InputError, match="is a deberta-v2 model; the attention of its first token can be read from bert, "
    ):
        refuse_unreadable(backbone)
