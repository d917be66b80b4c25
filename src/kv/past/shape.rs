//! What lies where in the file of the past, and what it takes. Everything here is pure.
//!
//! ```text
//! index   for each layer and KV head one stretch: a tile of two-bit keys for each 32 tokens, read in order at every step
//! rows    for each 32 tokens, for each layer (from a page's begin on), for each KV head, for each 4 tokens: 4 keys, 4 values
//! ```
//!
//! Both are rings of `n_tile` tiles: when all are taken, the oldest is overwritten.

use crate::kernels::{SCAN_CHUNK, SCAN_CHUNKS, SCAN_TILE, scan_tile_bytes};
use crate::kv::layout::{AttnLayer, KvShape};

/// Tokens of a tile.
pub const TILE: usize = SCAN_TILE;
/// Tokens that are fetched together.
pub const PIECE: usize = SCAN_CHUNK;
/// Pieces of a tile.
pub const PIECES: usize = SCAN_CHUNKS;
/// Tokens of a batch that share one choice, at most: more would share it for less, and ask for too
/// different things.
pub const SHARE: usize = 8;
/// Rows of a layer begin on a page, so that pages are written whole.
const PAGE: usize = 4096;
/// Pieces have numbers of 32 bits, and tokens of the file are counted in an address's.
pub const MAX_TILES: usize =
    if u32::MAX as usize / PIECES < usize::MAX / TILE { u32::MAX as usize / PIECES } else { usize::MAX / TILE };
/// Pieces that may be fetched for a head at a step.
pub const MAX_RECALL: usize = 256;
/// Pieces that a task fetches at least, where a step has one token, and as many tasks as a head has at most.
const PART: usize = 8;
const MAX_PARTS: usize = 4;

/// What the past asks of memory and of the disk.
#[derive(Clone, Copy, Debug)]
pub struct PastShape {
    pub kv: KvShape,
    /// Query heads of a KV head.
    pub n_q: usize,
    /// Caps scores; 0: it does not.
    pub soft_cap: f32,
    pub n_threads: usize,
    /// Pieces that are fetched for a KV head at a step.
    pub n_recall: usize,
    /// Tiles of the ring.
    pub n_tile: usize,
}

impl PastShape {
    /// Layers that have a past: those that no window limits.
    pub fn n_layer(&self) -> usize {
        self.kv.n_unlimited(self.kv.n_layer)
    }

    /// Which of them a layer is; `None` for one with a window.
    pub fn layer(&self, layer: AttnLayer) -> Option<usize> {
        (!self.kv.is_ring(layer)).then(|| self.kv.n_unlimited(layer.0))
    }

    /// How far behind what asks a token that is fetched stands at most, but for those that are fetched with it: nearer once positions
    /// have been given anew and none is its own any more. Measured with a model of 8,192 (docs/past.md).
    pub fn near(&self, is_renumbered: bool) -> usize {
        self.kv.n_ctx / if is_renumbered { 8 } else { 4 }
    }

    /// Tokens that the file holds.
    pub fn n_tok(&self) -> usize {
        self.n_tile * TILE
    }

    /// Pieces that the file holds.
    pub fn n_piece(&self) -> usize {
        self.n_tile * PIECES
    }

    /// A stored key of these layers, and a stored value.
    pub fn k_bytes(&self) -> usize {
        self.kv.k_type.row().row_bytes(self.kv.each.head_dim)
    }
    pub fn v_bytes(&self) -> usize {
        self.kv.v_type.row().row_bytes(self.kv.each.head_dim)
    }

    /// A token's key and value in one head.
    pub fn row_bytes(&self) -> usize {
        self.k_bytes() + self.v_bytes()
    }

    /// The rows of a tile in one head.
    pub fn head_bytes(&self) -> usize {
        TILE * self.row_bytes()
    }

    /// The rows of a tile in one layer, in whole pages.
    pub fn layer_bytes(&self) -> usize {
        (self.kv.each.n_head_kv * self.head_bytes()).next_multiple_of(PAGE)
    }

    /// The rows of a tile in all layers.
    fn rows_bytes(&self) -> u64 {
        self.n_layer() as u64 * self.layer_bytes() as u64
    }

    /// Stretches of the index.
    fn n_stretch(&self) -> usize {
        self.n_layer() * self.kv.each.n_head_kv
    }

    pub fn index_tile_bytes(&self) -> usize {
        scan_tile_bytes(self.kv.each.head_dim)
    }

    /// What a tile takes of the file.
    pub fn tile_bytes(&self) -> usize {
        self.n_layer() * (self.kv.each.n_head_kv * self.index_tile_bytes() + self.layer_bytes())
    }

    /// The index of all tiles, to the end of a page: what a step reads.
    pub fn index_bytes(&self) -> u64 {
        (self.n_stretch() as u64 * self.n_tile as u64 * self.index_tile_bytes() as u64).next_multiple_of(PAGE as u64)
    }

    pub fn file_bytes(&self) -> u64 {
        self.index_bytes() + self.n_tile as u64 * self.rows_bytes()
    }

    /// The most tiles that fit into a file of so many bytes, and that there may be.
    pub fn tiles_within(&self, bytes: u64) -> usize {
        (bytes.saturating_sub(PAGE as u64) / self.tile_bytes() as u64).min(MAX_TILES as u64) as usize
    }

    /// A file that holds `n_tok` tokens.
    pub fn bytes_for(&self, n_tok: usize) -> u64 {
        n_tok.div_ceil(TILE) as u64 * self.tile_bytes() as u64 + PAGE as u64
    }

    /// Where the index of a head begins for a tile of the ring.
    pub fn index_at(&self, layer: usize, head: usize, tile: usize) -> u64 {
        let stretch = (layer * self.kv.each.n_head_kv + head) as u64;
        (stretch * self.n_tile as u64 + tile as u64) * self.index_tile_bytes() as u64
    }

    /// Where the rows of a layer begin for a tile of the ring.
    pub fn rows_at(&self, layer: usize, tile: usize) -> u64 {
        self.index_bytes() + tile as u64 * self.rows_bytes() + layer as u64 * self.layer_bytes() as u64
    }

    /// In which tile of the ring a byte of the file is, and how many bytes it is from there to the end of what is the tile's. Those that
    /// fill the index's last page are of no tile; they are taken for one of the first.
    pub fn place(&self, at: u64) -> (usize, usize) {
        let (index, tile, rows) = (self.index_bytes(), self.index_tile_bytes() as u64, self.rows_bytes());
        match at.checked_sub(index) {
            None => ((at / tile % self.n_tile as u64) as usize, (tile - at % tile) as usize),
            Some(at) => ((at / rows) as usize, (rows - at % rows) as usize),
        }
    }

    /// What so many tiles take of a disk at most, the ends of pages and what the file system notes of them included.
    pub fn taken_bytes(&self, n_tile: usize) -> u64 {
        let stretches = (self.n_stretch() * 2 * PAGE) as u64;
        n_tile as u64 * self.tile_bytes() as u64 + if n_tile > 0 { stretches } else { 0 } + PAGE as u64
    }

    /// Tokens of a batch that share a choice.
    pub fn share(&self) -> usize {
        SHARE.min(self.kv.n_batch)
    }

    /// Tasks that fetch for a head where a step has one token: threads may be more than heads.
    pub fn n_part(&self) -> usize {
        self.n_recall.div_ceil(PART).min(MAX_PARTS)
    }

    /// Where the key and the value of a token lie in its head's rows of a tile.
    pub fn row_in_head(&self, j: usize) -> (usize, usize) {
        let (k, v) = (self.k_bytes(), self.v_bytes());
        let piece = j / PIECE * PIECE * (k + v);
        (piece + j % PIECE * k, piece + PIECE * k + j % PIECE * v)
    }

    /// Rows that are fetched for a head at most.
    pub fn n_fetched(&self) -> usize {
        self.n_recall * PIECE
    }

    /// Floats of what a KV head makes of the past for one token: `[max][sum][acc]`, n_q, n_q, n_q *
    /// head_dim.
    pub fn partial_len(&self) -> usize {
        self.n_q * (2 + self.kv.each.head_dim)
    }
}
