"""Small Hugging Face decoders that know some Python: `python -m bench.decoders --out FOLDER [--steps N]`.

A GPT-2 (learned positions, fused projections) and a Llama (rotary positions, four query heads to two of keys and values),
as transformers builds them, are trained from random weights on the source of the standard library and saved as it saves
models, FOLDER/gpt2 and FOLDER/llama, for `hf:FOLDER/gpt2`: models nobody here wrote, whose attention does something.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

LENGTH, BATCH, RATE = 256, 16, 2e-3


def decoders() -> dict[str, Any]:
    """Untrained, by name."""
    import transformers
    from surgery.zoo import stdlib

    common = {"vocab_size": stdlib.TOKENS, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(n_embd=128, n_layer=4, n_head=4, n_positions=LENGTH, **common)
    gpt2.resid_pdrop = gpt2.embd_pdrop = gpt2.attn_pdrop = 0.0
    llama = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        **common,
    )
    return {"gpt2": transformers.GPT2LMHeadModel(gpt2), "llama": transformers.LlamaForCausalLM(llama)}


def train(model: Any, steps: int, told: Any) -> None:
    """Next-token loss, AdamW, warm-up and cosine decay."""
    from surgery.zoo import stdlib

    tokens, chance = stdlib.training().tokens, torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, fused=True)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup), RATE / 100),
        ],
        [warmup],
    )
    model.train()
    for step in range(1, steps + 1):
        first = torch.randint(len(tokens) - LENGTH, (BATCH, 1), generator=chance)
        rows = tokens[first + torch.arange(LENGTH + 1)]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        told(step, float(loss.detach()))
    model.eval()


def save(model: Any, folder: Path) -> None:
    """With the tokenizer, so that text can be read."""
    from surgery.zoo import stdlib

    model.save_pretrained(folder)
    for name, content in stdlib.tokenizer_files().items():
        (folder / name).write_bytes(content)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.decoders", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/decoders"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=800)
    asked = parser.parse_args(argv)
    for name, model in decoders().items():

        def told(step: int, loss: float, name: str = name) -> None:
            if step % 10 == 0 or step == asked.steps:
                print(f"\r{name}: loss {loss:.3f} {step}/{asked.steps}\x1b[K", end="", file=sys.stderr, flush=True)

        train(model, asked.steps, told)
        save(model, asked.out / name)
        print(f"\n{asked.out / name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
