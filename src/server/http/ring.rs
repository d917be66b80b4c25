//! The calls of tools that answers held, as they were written, so that the next turn can say them byte for byte.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::Value;

const RING_CALLS: usize = 256;
/// A longer call is rendered by the template.
const RING_TEXT_BYTES: usize = 2 << 10;

/// The calls that answers held, as they were written.
#[derive(Default)]
pub struct Ring(Mutex<VecDeque<Kept>>);

struct Kept {
    /// Name and arguments of each, by its id.
    calls: Vec<(String, String, String)>,
    text: String,
}

impl Ring {
    /// What it takes at most.
    pub const BYTES: usize = RING_CALLS * (2 * RING_TEXT_BYTES + 512);

    /// Keeps the calls of an answer: `(id, name, arguments)`, and the text that they are.
    pub fn keep(&self, calls: Vec<(String, String, String)>, text: &str) {
        let n_bytes: usize = calls.iter().map(|(id, name, arguments)| id.len() + name.len() + arguments.len() + 72).sum();
        if text.len() > RING_TEXT_BYTES || n_bytes > RING_TEXT_BYTES || calls.is_empty() {
            return;
        }
        let mut ring = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if ring.len() == RING_CALLS {
            ring.pop_front();
        }
        ring.push_back(Kept { calls, text: text.to_owned() });
    }

    /// The text of a message's calls, if they are what they were.
    pub fn find(&self, calls: &[Value]) -> Option<String> {
        let ring = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let is_same = |call: &Value, (id, name, arguments): &(String, String, String)| {
            let function = &call["function"];
            let is_given = match &function["arguments"] {
                Value::String(text) => text == arguments || parsed(text) == parsed(arguments),
                object => parsed(arguments).as_ref() == Some(object),
            };
            call["id"] == **id && function["name"] == **name && is_given
        };
        let found = ring.iter().rev().find(|kept| {
            kept.calls.len() == calls.len() && calls.iter().zip(&kept.calls).all(|(call, kept)| is_same(call, kept))
        });
        found.map(|kept| kept.text.clone())
    }
}

fn parsed(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}
