#!/usr/bin/env python3
"""Makes two tiny random Llama checkpoints without vision and records what transformers makes of them.

Usage: record_llama.py [folder]        (needs torch and transformers 5; default tests/fixtures/llama)

`chatml` has a ChatML template as SmolLM2's in tokenizer_config.json, tied embeddings, and nothing that adds a
beginning-of-text token. `base` is stored as bfloat16 and has no chat template, Llama 3's rotary scaling, an embedding
padded beyond the tokenizer, and a tokenizer that begins each text with the beginning-of-text token.

Each line of golden.jsonl is a prompt: `messages` or a raw `text`, its ids, its last logits (base64 of little-endian
float32) and the first greedy tokens.
"""
import base64
import json
import os
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NEW = 24
TEXT = ["The quick brown fox jumps over the lazy dog. What is the capital of France? Write a poem about the sea, please.",
        "Answer in one word. You are a helpful assistant. user system assistant 0123456789 Grüße aus Köln, 你好 🙂\n\n"] * 4
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Grüße, 你好 🙂\n 12345"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello. "},
     {"role": "user", "content": "Write a poem about the sea " * 6}],
]
RAW = ["The quick brown fox", "Once upon a time, in Köln:\n", "0123456789 " * 12]


def tokenizer(specials, size):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return inner


def model(seed, layers, **config):
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
                         num_hidden_layers=layers, max_position_embeddings=512, initializer_range=0.3, **config)
    net = LlamaForCausalLM(config).eval()
    for name, value in net.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(value, 1.0, 0.1)
    return net


def record(folder, net, fast, prompts, dtype=torch.float32):
    net.to(dtype).save_pretrained(folder)
    # Loaded again, since the change of type rounds what is no weight, too (the rotary frequencies).
    net = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    fast.save_pretrained(folder)
    with open(os.path.join(folder, "golden.jsonl"), "w", encoding="utf-8") as out:
        for prompt in prompts:
            if isinstance(prompt, str):
                case, ids = {"text": prompt}, fast(prompt)["input_ids"]
            else:
                case = {"messages": prompt}
                ids = fast.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
            with torch.no_grad():
                batch = torch.tensor([ids])
                logits = net(batch).logits[0, -1].float().numpy()
                new = net.generate(batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=NEW,
                                   min_new_tokens=NEW, eos_token_id=None, pad_token_id=0)[0, len(ids):].tolist()
            case |= {"ids": ids, "last_logits": base64.b64encode(logits.astype("<f4").tobytes()).decode(), "tokens": new}
            out.write(json.dumps(case, ensure_ascii=False) + "\n")


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "../fixtures/llama")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = tokenizer(specials, 320)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                   unk_token="<|endoftext|>", pad_token="<|im_end|>")
    fast.chat_template = CHATML
    net = model(1, 2, vocab_size=inner.get_vocab_size(), bos_token_id=1, eos_token_id=2, pad_token_id=2,
                tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 100000.0})
    folder = os.path.join(root, "chatml")
    record(folder, net, fast, CHATS)
    # As transformers 4 wrote it, and as the hub's older checkpoints have it.
    jinja, settings = os.path.join(folder, "chat_template.jinja"), os.path.join(folder, "tokenizer_config.json")
    if os.path.exists(jinja):
        with open(settings, encoding="utf-8") as file:
            config = json.load(file)
        with open(jinja, encoding="utf-8") as file:
            config["chat_template"] = file.read()
        with open(settings, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2, ensure_ascii=False)
        os.remove(jinja)

    inner = tokenizer(["<|begin|>", "<|end|>"], 310)
    inner.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|end|>")
    net = model(2, 3, vocab_size=320, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False, head_dim=16,
                rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    record(os.path.join(root, "base"), net, fast, RAW, torch.bfloat16)


if __name__ == "__main__":
    main()
