"""Ask the exported model by llama.cpp: python answer.py "Who reads the poems?"."""

import sys
from pathlib import Path

from ik_llama_cpp import IkLlama

path = Path(__file__).parent / "ftbuild-out" / "for_llama_cpp" / "model.gguf"
llama = IkLlama(str(path), n_ctx=128, n_threads=1, verbose=False)
text = f"<|im_start|>user\n{sys.argv[1]}<|im_end|>\n<|im_start|>assistant\n"
prompt = llama.tokenize(text, add_bos=False, special=True)
print(llama.detokenize(llama.generate(prompt, max_tokens=24, temperature=0.0)).strip())
llama.close()
