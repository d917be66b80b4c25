"""llama.cpp as the independent engine, through the C API of llama-cpp-python with its own default settings.

Owns: loading, tokenising, and logits after every token of a window (f16 cache, flash attention "auto", 2 threads).
Refuses: sampling and chat; and any setting that is not llama.cpp's default, so that figures can be reproduced.
"""

import ctypes

try:
    import llama_cpp
    import numpy as np
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

N_BATCH = 512
N_THREADS = 2


@llama_cpp.llama_log_callback
def _quiet(_level, _text, _user_data):
    pass


class Peer:
    """One GGUF model in llama.cpp with room for n_ctx tokens."""

    def __init__(self, path, n_ctx=2048, vocab_only=False):
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_quiet, None)
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ValueError(f"{path}: llama.cpp cannot load it")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.context = None
        if vocab_only:
            return
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = n_ctx
        settings.n_batch = N_BATCH
        settings.n_threads = settings.n_threads_batch = N_THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise ValueError(f"{path}: llama.cpp cannot make a context of {n_ctx} tokens")

    def close(self):
        if self.context:
            llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)
        self.context = self.model = None

    def tokenize(self, text, parse_special=True):
        """Token ids of a str or of bytes, no token added."""
        data = text.encode() if isinstance(text, str) else text
        room = 3 * len(data) + 8  # each byte that is no UTF-8 may become a character of three
        ids = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, room, False, parse_special)
        if n < 0:
            raise ValueError(f"llama.cpp needs room for {-n} tokens")
        return list(ids[:n])

    def detokenize(self, ids):
        """The bytes of the tokens, special ones spelled out."""
        out = b""
        piece = ctypes.create_string_buffer(512)
        for token in ids:
            n = llama_cpp.llama_token_to_piece(self.vocab, int(token), piece, len(piece), 0, True)
            if n < 0:
                raise ValueError(f"token {token} needs {-n} bytes")
            out += piece.raw[:n]
        return out

    def logits(self, ids):
        """Logits [n, n_vocab] after each token of one window that starts at position 0."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        out = np.empty((len(ids), self.n_vocab), np.float32)
        batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)
        try:
            for start in range(0, len(ids), N_BATCH):
                part = ids[start : start + N_BATCH]
                batch.n_tokens = len(part)
                for i, token in enumerate(part):
                    batch.token[i] = int(token)
                    batch.pos[i] = start + i
                    batch.n_seq_id[i] = 1
                    batch.seq_id[i][0] = 0
                    batch.logits[i] = True
                status = llama_cpp.llama_decode(self.context, batch)
                if status != 0:
                    raise RuntimeError(f"llama_decode gave {status} at token {start}")
                rows = llama_cpp.llama_get_logits(self.context)
                size = len(part) * self.n_vocab
                flat = np.ctypeslib.as_array(ctypes.cast(rows, ctypes.POINTER(ctypes.c_float)), (size,))
                out[start : start + len(part)] = flat.reshape(len(part), self.n_vocab)
        finally:
            llama_cpp.llama_batch_free(batch)
        return out


def provenance():
    info = llama_cpp.llama_print_system_info().decode()
    return {"llama_cpp_python": llama_cpp.__version__, "llama_cpp_system": info.strip()}
