//! Keys and values in a fixed arena. `layout` says what a model asks of it and `budget` how much of that fits; `policy` says
//! which entry is evicted; `past` has what was evicted in a file; `store` holds the entries and takes in the tokens of a step; `attention` reads them.

pub mod attention;
pub mod budget;
pub mod layout;
pub mod past;
pub mod policy;
pub mod store;
#[cfg(test)]
pub(crate) mod testkit;
pub mod types;

use crate::kernels::RopeOrder;

pub use budget::{KvParams, Recent, Share};
pub use layout::{AttnLayer, Head, KvShape, LayerShape, Window};
pub use past::{Past, PastParams};
pub use policy::Policy;
pub use store::KvCache;
pub use types::KvType;

/// Logical position of a token: how many tokens came before it in the stream (renumbered near the trained context's
/// end, see `store::renumber`). Never the count of what is kept.
pub type Pos = u32;

/// How positions turn the keys of a layer: what the model knows of RoPE and the cache does not.
pub trait Rotary: Sync {
    /// What keys are multiplied with as they are turned; `None` where a layer leaves them as they are.
    fn magnitude(&self, layer: AttnLayer) -> Option<f32>;
    /// In which order it turns pairs of elements, and how many elements; `None` likewise.
    fn pairs(&self, layer: AttnLayer) -> Option<(RopeOrder, usize)>;
    /// Sets the angles by which a key moves on by `steps` positions.
    fn set_angles(&self, layer: AttnLayer, steps: i64, angles: &mut [f32]);
    /// Turns one key by these angles.
    fn turn(&self, layer: AttnLayer, key: &mut [f32], angles: &[f32]);
    /// Makes of squares of a query's elements their mean over all positions.
    fn mean_squares(&self, layer: AttnLayer, squares: &mut [f32]);
    /// Makes of a key before RoPE the mean of what it is at all positions; `angles` is left as anything.
    fn mean_key(&self, layer: AttnLayer, key: &mut [f32], angles: &mut [f32]);
}
