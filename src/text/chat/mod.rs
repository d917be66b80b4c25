//! From a conversation to the text that a model was trained to answer. The template is a stranger's program and the messages are
//! a stranger's text: the first gets limits (`source`, `template`), the second never becomes a mark of the template's (`marks`).

pub mod clock;
mod conversation;
mod json;
mod marks;
pub mod named;
mod python;
mod source;
pub mod template;

pub use conversation::{Conversation, RESERVED, written_bytes};
pub use marks::Rendered;
pub use template::{ChatTemplate, Message};
