"""Writes a Llama model of 0.3 MB that the real vLLM serves on a CPU. Run by the Python of `vllm-env`, offline.

usage: python tiny_model.py DIR [--broken-head-dim]

The weights are random: the text it completes is noise, but a fixed seed makes it the same noise each time.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

VOCABULARY = 512
HIDDEN = 64
LAYERS = 2
MAX_POSITIONS = 2048
SPECIALS = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
TEXT = (
    "the worker holds the memory of one device and the keeper holds the worker until nothing of its tree remains",
    "a restart follows proof and not hope",
    "0123456789 .,:;!?",
)


def write_tokenizer(directory: Path) -> list[int]:
    """Train a byte-level BPE on a few sentences, write it; return the ids of its printable tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    unknown, begin, end = SPECIALS
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, unk_token=unknown)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
    return [token for token in range(len(SPECIALS), len(fast)) if is_printable(fast.decode([token]))]


def is_printable(text: str) -> bool:
    """Whether ``text`` is there, and ASCII that shows (half a UTF-8 character does not)."""
    return bool(text) and text.isascii() and text.isprintable()


def write_weights(directory: Path, printable: list[int], *, heads: int, kv_heads: int) -> None:
    """Write config.json and safetensors; one head is ``HIDDEN / heads`` wide, output is of ``printable`` tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=SPECIALS.index("<s>"),
        eos_token_id=SPECIALS.index("</s>"),
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    # Logit 0 for all others: greedy decoding never picks an end or half a character, so there is text up to max_tokens.
    mute = torch.ones(VOCABULARY, dtype=torch.bool)
    mute[printable] = False
    model.lm_head.weight.data[mute] = 0.0
    model.to(torch.bfloat16).save_pretrained(directory)
    # safetensors writes for the owner alone; the daemon may run as somebody else.
    (directory / "model.safetensors").chmod(0o644)


def main() -> None:
    """Write the model directory that the command line names."""
    parser = argparse.ArgumentParser(description="write a tiny Llama model for vLLM on a CPU")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--broken-head-dim",
        action="store_true",
        # vLLM 0.32.0: "Unsupported CPU attention configuration: head_dim=16", then EngineDeadError and exit code 0.
        help="heads of 16 instead of 32: vLLM on a CPU becomes ready with it, and its engine dies at the first request",
    )
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.directory.mkdir(parents=True, exist_ok=True)
    printable = write_tokenizer(arguments.directory)
    heads, kv_heads = (4, 2) if arguments.broken_head_dim else (2, 1)
    write_weights(arguments.directory, printable, heads=heads, kv_heads=kv_heads)


if __name__ == "__main__":
    main()
