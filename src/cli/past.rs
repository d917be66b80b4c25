//! What is said of the past in a file (`--past`): its plan, and what a stream made of it.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::kv::Past;
use crate::kv::past::PastShape;
use crate::session::SessionParams;
use crate::session_file::{Head, Name};
use crate::units::Bytes;

/// Names the file of the past after a session, and refuses what of the two does not go together. `head`: of the session, if it is there.
pub fn keep_past(params: &mut SessionParams, name: &Name, head: Option<&Head>) -> Result<()> {
    let has_past = head.map(|head| head.fingerprint.has_past());
    let Some(past) = &mut params.past else {
        return match has_past {
            Some(true) => {
                let what = format!("'{name}' has a past in the file {}: name its folder with --past", name.past().as_str());
                Err(Error::usage("--session", what))
            }
            _ => Ok(()),
        };
    };
    match has_past {
        Some(false) => {
            let what = format!("session '{name}' was begun without a past: leave it out, or give another name");
            return Err(Error::usage("--past", what));
        }
        Some(true) if !past.folder.join(name.past().as_str()).exists() => {
            let what = format!(
                "session '{name}' has a past, and {} has no {}: name the folder that has it, or put an empty file there to go on without",
                past.folder.display(),
                name.past().as_str()
            );
            return Err(Error::usage("--past", what));
        }
        _ => {}
    }
    past.name = Some(name.past().as_str().to_owned());
    Ok(())
}

/// Speed for which a day's writing is told: that of a small model on a small board.
const TOKENS_A_SECOND: u64 = 10;
const SECONDS_A_DAY: u64 = 86_400;

/// Of `run --json`.
#[derive(Serialize)]
pub struct PastReport {
    file_bytes: u64,
    /// Tokens that the file holds.
    n_tokens: usize,
    recall: usize,
    written_bytes: u64,
    /// Of keys and values, with what lies between them; the index, which is read whole at every step, is not in it.
    read_bytes: u64,
    /// Of four tokens, in one KV head.
    pieces: u64,
    /// Share of the pieces that the token before had fetched too, over steps of one token; null
    /// where there was none.
    hit_rate: Option<f64>,
    /// What could not be written, tiles of 32 tokens, and reads that failed.
    lost_tiles: u64,
    failed_reads: u64,
}

impl PastReport {
    pub fn of(past: &Past) -> PastReport {
        let (shape, counts) = (past.shape(), past.counts());
        PastReport {
            file_bytes: shape.file_bytes(),
            n_tokens: shape.n_tok(),
            recall: shape.n_recall,
            written_bytes: counts.written_bytes,
            read_bytes: counts.read_bytes,
            pieces: counts.n_pieces,
            hit_rate: hit_rate(past),
            lost_tiles: counts.n_lost,
            failed_reads: counts.n_unread,
        }
    }
}

fn hit_rate(past: &Past) -> Option<f64> {
    let counts = past.counts();
    (counts.n_single > 0).then(|| counts.n_again as f64 / counts.n_single as f64)
}

/// What a stream made of its past, in a few words.
pub fn past_line(past: &Past) -> String {
    let counts = past.counts();
    let mut line =
        format!("past: {} written, {} pieces ({}) read", Bytes(counts.written_bytes), counts.n_pieces, Bytes(counts.read_bytes));
    if let Some(rate) = hit_rate(past) {
        line += &format!(", {:.0}% of them again", 100.0 * rate);
    }
    if counts.n_lost + counts.n_unread > 0 {
        line += &format!(", {} tiles lost, {} reads failed", counts.n_lost, counts.n_unread);
    }
    line
}

/// The plan's line of a session while it is written.
pub const SAVED: &str = "session that is being saved";

/// What the plan says of the file. `session_bytes`: of what a server saves of a stream, its past aside.
pub fn plan_line(shape: &PastShape, session_bytes: Option<u64>) -> String {
    let token_bytes = (shape.tile_bytes() / crate::kv::past::shape::TILE) as u64;
    let day_bytes = token_bytes * TOKENS_A_SECOND * SECONDS_A_DAY;
    let mut line = format!(
        "past: a file of {} holds the latest {} tokens of {token_bytes} bytes; a step reads its index, {} when it is full, and up to {} \
         pieces for each KV head; a day at {TOKENS_A_SECOND} tokens a second writes {}",
        Bytes(shape.file_bytes()),
        shape.n_tok(),
        Bytes(shape.index_bytes()),
        shape.n_recall,
        Bytes(day_bytes * if session_bytes.is_some() { 2 } else { 1 }),
    );
    if let Some(bytes) = session_bytes {
        line += &format!(
            ": each token to the stream's file and to its session's; each save of a session writes up to {} besides",
            Bytes(bytes)
        );
    }
    line
}
