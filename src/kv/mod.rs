//! Keys and values in a fixed arena: `policy` says what makes an entry go, `victim` finds the one that does, `cache` holds the entries, `attention` reads them.

pub mod attention;
pub mod cache;
pub mod marks;
pub mod policy;
pub mod shape;
pub mod types;
pub mod victim;
pub mod window;

/// Logical position of a token: how many tokens came before it in the stream (renumbered near the trained context's
/// end, see `cache::KvCache::renumber`). Never the count of what is kept.
pub type Pos = u32;
