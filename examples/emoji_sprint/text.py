"""Prompts → embeddings: a Gemma tokenizer and a tiny Gemma 2, which the pipelines read after a long instruction.

`SanaPipeline` and `SanaSprintPipeline` write an instruction to a language model before every prompt, and keep `<bos>`
and the tokens of the prompt of what the text encoder makes of both. The empty prompt of classifier-free guidance has
no instruction: `<bos>` is all that is kept of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as fn
from diffusers import SanaPipeline
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from examples.emoji_lcm.subjects import COLOUR_NAMES, SUBJECTS, all_captions, captions, is_held_out
from examples.emoji_lcm.training import CAPTION_SLOTS, cosine
from examples.emoji_sprint.training import Loop, descend
from rlcm_cli.families._sana import read_instruction

WIDTH = 128
LONGEST = 24
"""Tokens of a prompt that the recipe asks the pipelines for: more than any caption has, and each one costs time."""
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
"""With Gemma's ids 0 to 3."""


def instruction() -> str:
    """Return what the pipelines write before a prompt."""
    return "\n".join(read_instruction(SanaPipeline))


def new_tokenizer() -> GemmaTokenizer:
    """Train a BPE with byte fallback on the captions and the instruction; it begins a text with `<bos>`."""
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token=SPECIAL[3]))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=[*SPECIAL, *in_bytes], show_progress=False)
    # A prompt follows a space.
    texts = [text for caption in all_captions() for text in (caption, f" {caption}")]
    trained.train_from_iterator([*read_instruction(SanaPipeline) * 2, *texts], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def new_text_encoder(tokenizer: GemmaTokenizer) -> Gemma2Model:
    """Build an untrained encoder of half a million parameters."""
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=WIDTH // 4,
            query_pre_attn_scalar=WIDTH // 4,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


@dataclass(frozen=True)
class Captions:
    """Embeddings [N, tokens, WIDTH] and masks [N, tokens] of the empty prompt, and then of every caption."""

    embeds: torch.Tensor
    mask: torch.Tensor

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        save_file(dict(vars(self)), path)

    @staticmethod
    def load(path: Path) -> Captions:
        """Read what `save` wrote."""
        return Captions(**load_file(path))

    def to(self, device: torch.device) -> Captions:
        """Return them on a device."""
        return Captions(self.embeds.to(device), self.mask.to(device))

    def take(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the transformer is conditioned on, of the captions of an index [B]."""
        return {"encoder_hidden_states": self.embeds[index], "encoder_attention_mask": self.mask[index]}


def caption_slots() -> torch.Tensor:
    """Return the rows of `Captions` that a picture may carry, int64 [subjects, colours, CAPTION_SLOTS]."""
    row = {caption: 1 + index for index, caption in enumerate(all_captions())}
    slots = []
    for subject in SUBJECTS:
        for colour in COLOUR_NAMES:
            rows = [row[caption] for caption in captions(subject, colour)]
            slots.append(torch.tensor(rows * (CAPTION_SLOTS // len(rows))))
    return torch.stack(slots).view(len(SUBJECTS), len(COLOUR_NAMES), CAPTION_SLOTS)


@torch.no_grad()
def embed_captions(
    tokenizer: GemmaTokenizer, encoder: Gemma2Model, texts: Sequence[str] | None = None, batch: int = 64
) -> Captions:
    """Encode the empty prompt and texts (default: the captions) with diffusers' own pipeline."""
    pipe = SanaPipeline(tokenizer=tokenizer, text_encoder=encoder, vae=None, transformer=None, scheduler=None)
    embeds, masks = [], []
    texts = all_captions() if texts is None else list(texts)
    for start in range(0, len(texts), batch):
        positive, mask, negative, negative_mask = pipe.encode_prompt(
            texts[start : start + batch],
            device=encoder.device,
            max_sequence_length=LONGEST,
            complex_human_instruction=read_instruction(SanaPipeline),
        )
        if not start:
            embeds.append(negative[:1])
            masks.append(negative_mask[:1])
        embeds.append(positive)
        masks.append(mask)
    mask = torch.cat(masks).cpu()
    if mask[:, -1].any():
        raise ValueError(f"a caption may be longer than {LONGEST} tokens; raise LONGEST")
    tokens = int(mask.sum(1).max())
    return Captions(torch.cat(embeds).float().cpu()[:, :tokens].contiguous(), mask[:, :tokens].contiguous())


# Training: the encoder learns to say at every word what it has read of subject and colour


def tokenize(tokenizer: GemmaTokenizer, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids of the instruction [P], and ids and mask [N, T] of the texts that follow it."""
    before = instruction()
    whole = [tokenizer(before + text).input_ids for text in texts]
    # The instruction's last token, a space, becomes part of the prompt's first.
    shared = len(tokenizer(before).input_ids) - 1
    prefix = whole[0][:shared]
    if any(ids[:shared] != prefix for ids in whole):
        raise ValueError("a prompt changes how the instruction before it is split into tokens")
    rests = [torch.tensor(ids[shared:]) for ids in whole]
    padded = nn.utils.rnn.pad_sequence(rests, batch_first=True, padding_value=tokenizer.pad_token_id)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(rest) for rest in rests], batch_first=True)
    return torch.tensor(prefix), padded, mask


def encode_after(encoder: Gemma2Model, prefix: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return embeddings [B, T, WIDTH] of texts [B, T] that follow one prefix [P], which is read once.

    They are one sequence, in which a text sees the prefix and itself.
    """
    texts, tokens = ids.shape
    before = len(prefix)
    device = ids.device
    place = torch.cat([torch.arange(before), before + torch.arange(tokens).repeat(texts)]).to(device)
    owner = torch.cat([torch.full((before,), -1), torch.arange(texts).repeat_interleave(tokens)]).to(device)
    seen = ((owner[None] == owner[:, None]) | (owner[None] < 0)) & (place[None] <= place[:, None])
    mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, torch.finfo(torch.float32).min)
    embeds: torch.Tensor = encoder(
        torch.cat([prefix, ids.flatten()])[None], attention_mask=mask[None, None], position_ids=place[None]
    ).last_hidden_state
    return embeds[0, before:].view(texts, tokens, -1)


def train_text_encoder(
    tokenizer: GemmaTokenizer, loop: Loop, *, batch: int, learning_rate: float, seed: int, device: torch.device
) -> Gemma2Model:
    """Train with two linear heads: the subject and the colour, at every token of the prompt and at its last.

    The captions of held-out pairs are left out. What a token cannot know yet, it learns the chances of.
    """
    torch.manual_seed(seed)
    encoder = new_text_encoder(tokenizer).to(device).train()
    heads = nn.ModuleList([nn.Linear(WIDTH, len(SUBJECTS)), nn.Linear(WIDTH, len(COLOUR_NAMES))]).to(device)
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *heads.parameters()], lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-2
    )
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, loop.steps, 20, 0.02))
    meant = [
        (text, subject, colour)
        for subject, name in enumerate(SUBJECTS)
        for colour, ground in enumerate(COLOUR_NAMES)
        if not is_held_out(subject, colour)
        for text in dict.fromkeys(captions(name, ground))
    ]
    prefix, ids, mask = (x.to(device) for x in tokenize(tokenizer, [text for text, _, _ in meant]))
    wanted = torch.tensor([[subject, colour] for _, subject, colour in meant], device=device)

    def step(index: int) -> dict[str, float]:
        pick = torch.randint(len(meant), (batch,), device=device)
        embeds = encode_after(encoder, prefix, ids[pick])
        kept = mask[pick].bool()
        last = kept.sum(1) - 1
        loss = torch.zeros((), device=device)
        right = torch.ones(batch, dtype=torch.bool, device=device)
        for kind, head in enumerate(heads):
            logits = head(embeds)
            target = wanted[pick, kind]
            at_end = logits[torch.arange(batch, device=device), last]
            everywhere = target[:, None].expand(kept.shape)[kept]
            loss = loss + fn.cross_entropy(at_end, target) + 0.3 * fn.cross_entropy(logits[kept], everywhere)
            right &= at_end.argmax(1) == target
        descend(loss, optimizer, decay)
        return {"loss": loss.item(), "right": right.float().mean().item()}

    loop.run({"encoder": encoder, "heads": heads, "optimizer": optimizer, "decay": decay}, step)
    return encoder.eval()


def load_text_encoder(folder: Path) -> Gemma2Model:
    """Load for inference, in float32."""
    return Gemma2Model.from_pretrained(folder, dtype=torch.float32).eval()
