//! Everything between strings and token ids: tokenizer, chat templates, the sampler that turns logits into one id, and the
//! stream that turns the bytes of tokens back into whole characters.
//!
//! Nothing here knows of tensors or of the cache; the command line and the server use these pieces beside a session.

pub mod chat;
mod held;
pub mod sampler;
pub mod tokenizer;
pub mod utf8;

pub use chat::{ChatTemplate, Conversation, Message, RESERVED, Rendered, named as named_templates, written_bytes};
pub use held::Held;
pub use sampler::{Filter, Sampler, SamplerParams, greedy, top_logprobs};
pub use tokenizer::{Piece, Tokenizer};
pub use utf8::Utf8Stream;
