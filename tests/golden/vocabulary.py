"""llama.cpp with a small vocabulary and no model: what the scripts for tokenizers share.

Owns: the file that such a vocabulary is written to, and the sizes of the model that it has none of.
"""

import contextlib
import pathlib
import tempfile

import gguf
from peer import Peer


@contextlib.contextmanager
def loaded(model, tokens, kinds, write_more):
    """A `Peer` with these tokens. `model` is `tokenizer.ggml.model`; `write_more(writer)` adds what else the file says."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vocab.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count, writer.add_feed_forward_length, writer.add_head_count):
            add(32)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model(model)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        write_more(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        peer = Peer(path, vocab_only=True)
        try:
            yield peer
        finally:
            peer.close()
