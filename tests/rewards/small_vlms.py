"""Small random models of real architectures, saved as the hub has them, for the tests of the local judge."""

import torch

WORDS = (
    "how many tigers are there in this image what is going on answer concisely with a number the contains cat dog one "
    "two three four User Assistant USER ASSISTANT : ? ."
)
TEXT_TOKENS = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
IMAGE_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<end_of_utterance>"]
SPECIAL_TOKENS = [*TEXT_TOKENS.values(), *IMAGE_TOKENS]

LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
IDEFICS_TEMPLATE = (
    "{% for message in messages %}User:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance> "
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *dict.fromkeys(WORDS.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=TEXT_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **TEXT_TOKENS,
        additional_special_tokens=IMAGE_TOKENS,
        extra_special_tokens={"image_token": "<image>"},
    )


def text_settings(tokenizer) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save(model, processor, folder) -> None:
    # At the usual scale of fresh weights the answer is the same whatever the image.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20)
        # Nor do trained models write image tokens.
        model.lm_head.weight[: len(SPECIAL_TOKENS)] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_llava(folder) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text_settings(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    save(LlavaForConditionalGeneration(config), processor, folder)


def make_idefics3(folder) -> None:
    """The architecture of SmolVLM-256M-Instruct."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**vision, "image_size": 16, "patch_size": 4},
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS_TEMPLATE,
    )
    save(Idefics3ForConditionalGeneration(config), processor, folder)
