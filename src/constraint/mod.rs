//! Answers that obey: any JSON, a JSON schema, or a grammar. llguidance says which tokens may follow; this room feeds it.
//!
//! ```text
//! schema   what a schema may hold; refusals by keyword        gbnf     llama.cpp's grammars, read     lark   and written as Lark's
//! pattern  patterns of schemas as the library reads them
//! engine   the vocabulary's tables, grammars, their tokens    region   the memory that they share
//! ```
//!
//! A grammar is made (`Constraints::compile`) before an answer starts, on a thread of its own whose allocations are counted; what would
//! keep more than half of the region is refused. Each answer walks its own copy (`Live`), and what that takes more is counted token by
//! token: the library's limits are small enough that no token takes what is held back for one, so that the region holds.
//! Without the feature `constraint` everything is refused.

#[cfg(feature = "constraint")]
mod engine;
#[cfg(not(feature = "constraint"))]
#[path = "without.rs"]
mod engine;
#[cfg(feature = "constraint")]
mod gbnf;
#[cfg(feature = "constraint")]
mod lark;
mod pattern;
#[cfg(feature = "constraint")]
mod region;
mod schema;

use std::fmt::Write;

use serde_json::Value;

pub use engine::{Constraints, Grammar, Live};
pub use schema::{Prepared, most_made, prepared, too_many};

/// A schema's or grammar's text at most.
pub const MAX_RULES_BYTES: usize = 64 << 10;
/// The least that a region can be.
pub const MIN_BYTES: usize = 1 << 20;

/// What an answer is to obey.
#[derive(Clone, Debug)]
pub enum Rules {
    /// Any JSON object.
    Json,
    /// A JSON schema.
    Schema(Value),
    /// llama.cpp's grammars.
    Gbnf(String),
    /// llguidance's own.
    Lark(String),
    /// The same, of this program's making: it is not checked, but for how many schemas it comes to.
    Own { text: String, n_made: usize },
}

/// Why there is no grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It cannot be held to, or not be read: which keyword, which line.
    Invalid(String),
    /// It would take more memory than grammars may.
    TooLarge(String),
    /// Others have taken the memory.
    Busy,
    /// A grammar has taken the memory for good.
    Lost,
    /// This program cannot.
    Absent(&'static str),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Invalid(what) => f.write_str(what),
            Refused::TooLarge(what) => {
                write!(f, "it would take more memory than grammars may: {what}; make it smaller, or give grammars more memory")
            }
            Refused::Busy => f.write_str("other answers have taken the memory for grammars: try again, or give grammars more"),
            Refused::Lost => {
                f.write_str("a grammar took more memory than its limits allow: there is none for others until the restart")
            }
            Refused::Absent(what) => f.write_str(what),
        }
    }
}

/// A text as Lark writes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            c if c.is_ascii_control() => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
    out
}
