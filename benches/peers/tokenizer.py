"""Llama 3's tokenizer in the hub's layout, for random checkpoints. For benches/peers/run.py.

    tokenizer.py OUT_DIR

From the file in PyPI's llama-models, by transformers' own conversion. Meta's licence lets you use it and not this project
hand it on, which is why it is made here. Needs llama-models, tiktoken, tokenizers and transformers.
"""
import importlib.metadata
import json
import os
import sys

from transformers.convert_slow_tokenizer import TikTokenConverter

RESERVED = "<|reserved_special_token_{}|>"
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", RESERVED.format(0), RESERVED.format(1), "<|finetune_right_pad_id|>",
           "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
SPECIAL += [RESERVED.format(number) for number in range(2, 247)] + ["<|image|>"]
FIRST = 128000


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    files = importlib.metadata.files("llama-models")
    model = next(file for file in files if str(file).endswith("llama_models/llama3/tokenizer.model"))
    converted = TikTokenConverter(vocab_file=str(model.locate()), extra_special_tokens=SPECIAL).converted()
    assert converted.token_to_id("<|begin_of_text|>") == FIRST and converted.token_to_id("<|image|>") == FIRST + 256
    converted.save(os.path.join(out, "tokenizer.json"))
    tokens = {str(FIRST + at): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                                "single_word": False, "special": True} for at, token in enumerate(SPECIAL)}
    config = {"added_tokens_decoder": tokens, "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
              "pad_token": "<|finetune_right_pad_id|>", "clean_up_tokenization_spaces": True,
              "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 131072,
              "tokenizer_class": "PreTrainedTokenizerFast"}
    with open(os.path.join(out, "tokenizer_config.json"), "w") as file:
        json.dump(config, file, indent=1)


if __name__ == "__main__":
    main()
