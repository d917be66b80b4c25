//! Everything between strings and token ids: tokenizer, chat templates, the sampler that turns logits into one id, and the
//! stream that turns the bytes of tokens back into whole characters.
//!
//! Nothing here knows of tensors or of the cache; the command line and the server use these pieces beside a session.

pub mod bpe;
mod library_bpe;
pub mod named_templates;
pub mod pretokenizer;
pub mod sampler;
pub mod spm;
pub mod template;
pub mod text_table;
pub mod tokenizer;
pub mod utf8_stream;

pub use sampler::{Sampler, SamplerParams, greedy, top_logprobs};
pub use template::{ChatTemplate, Message};
pub use tokenizer::{Piece, Tokenizer};
pub use utf8_stream::Utf8Stream;
