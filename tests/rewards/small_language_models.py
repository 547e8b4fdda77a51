"""Small random language models saved as the hub has them, for the tests of BERTScore."""

import json

import torch

WORDS = ["the", "image", "contains", "a", "cat", "dog", "is", "on", "blue", "washing", "riding", "bike", "and"]


def make_bert(folder, layers: int = 4, **tokenizer_settings) -> None:
    """BERT with safetensors and a WordPiece vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer.from_pretrained(folder, **tokenizer_settings).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)


def make_deberta(folder, layers: int = 4) -> None:
    """DeBERTa as microsoft/deberta-xlarge-mnli is published: a classifier's pickle, a byte-level vocabulary."""
    from transformers import DebertaConfig, DebertaForSequenceClassification

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = [*special, *"abcdefghijklmnopqrstuvwxyz.", "Ġ", "T", "ca", "cat", "Ġcat"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t\nĠ cat\n")
    # The published one names no longest text.
    tokenizer = {"tokenizer_class": "DebertaTokenizer", "do_lower_case": False, "vocab_type": "gpt2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config = DebertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        type_vocab_size=0,
        position_biased_input=False,
        initializer_range=0.5,
        num_labels=3,
    )
    model = DebertaForSequenceClassification(config)
    config.architectures = ["DebertaForSequenceClassification"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
