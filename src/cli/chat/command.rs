//! What begins with a slash.

use crate::cli::args::SampleArgs;
use crate::cli::output::say;
use crate::cli::status::guessed;
use crate::error::{Error, Result};
use crate::units::Bytes;

use super::keep::Kept;
use super::talk::{Answered, Talk};

pub const HELP: &str = "\
/help               this list
/stats              tokens, speed and memory of the conversation
/arena              which tokens are kept: a line a layer, from the oldest to the newest
/save [NAME]        keep the conversation; /load NAME goes on with one, /sessions lists them
/system TEXT        another system text; the conversation begins anew
/set NAME VALUE     temp, top-k, top-p, min-p, repeat-penalty, presence-penalty, frequency-penalty, seed, n
/regenerate         another answer in place of the last
/reset              forget the conversation; what is kept of it stays, unless --session named it
/exit               leave (as Ctrl-D does)
\"\"\" begins and ends a text of several lines; \\ at the end of a line goes on with the next.
Ctrl-C stops an answer; twice on an empty line it leaves.";

/// What a command asks of the loop.
pub enum After {
    Nothing,
    Regenerate,
    Exit,
}

pub fn run(line: &str, talk: &mut Talk, kept: &mut Kept, sample: &mut SampleArgs, last: &Answered) -> Result<After> {
    let (name, rest) = line[1..].split_once(char::is_whitespace).map_or((&line[1..], ""), |(name, rest)| (name, rest.trim()));
    match name {
        "help" | "?" => say(HELP),
        "stats" => say(&stats(talk, last)),
        "arena" => say(&arena(talk)),
        "save" => kept.get(talk)?.save(rest, talk)?,
        "load" => kept.get(talk)?.load(rest, talk)?,
        "sessions" => kept.get(talk)?.list(),
        "system" => {
            talk.system = (!rest.is_empty()).then(|| rest.to_owned());
            talk.reset();
            say(&format!("The conversation begins anew.{}", kept.begin_anew(talk)));
        }
        "set" => set(rest, talk, sample)?,
        "regenerate" => return Ok(After::Regenerate),
        "reset" => {
            talk.reset();
            say(&format!("The conversation is forgotten.{}", kept.begin_anew(talk)));
        }
        "exit" | "quit" | "bye" => return Ok(After::Exit),
        other => return Err(Error::stopped(format!("/{other} is no command; /help lists them"))),
    }
    Ok(After::Nothing)
}

fn set(rest: &str, talk: &mut Talk, sample: &mut SampleArgs) -> Result<()> {
    let Some((name, value)) = rest.split_once(char::is_whitespace).map(|(name, value)| (name, value.trim())) else {
        return Err(Error::stopped("/set takes a name and a value, such as /set temp 0.5; /help lists the names"));
    };
    let wrong = || Error::stopped(format!("/set {name}: '{value}' is not a number that it can be"));
    let mut changed = sample.clone();
    match name {
        "temp" => changed.temp = value.parse().map_err(|_| wrong())?,
        "top-k" => changed.top_k = value.parse().map_err(|_| wrong())?,
        "top-p" => changed.top_p = value.parse().map_err(|_| wrong())?,
        "min-p" => changed.min_p = value.parse().map_err(|_| wrong())?,
        "repeat-penalty" => changed.repeat_penalty = value.parse().map_err(|_| wrong())?,
        "presence-penalty" => changed.presence_penalty = value.parse().map_err(|_| wrong())?,
        "frequency-penalty" => changed.frequency_penalty = value.parse().map_err(|_| wrong())?,
        "seed" => changed.seed = Some(value.parse().map_err(|_| wrong())?),
        "n" => {
            talk.n_answer = value.parse::<crate::cli::args::OrMinusOne<usize>>().map_err(|_| wrong())?.0.unwrap_or(usize::MAX);
            return Ok(());
        }
        _ => return Err(Error::stopped(format!("/set {name}: there is no such setting; /help lists them"))),
    }
    let params = changed.params(talk.session.model().config.n_ctx);
    params.validate().map_err(|error| Error::stopped(error.message()))?;
    talk.sampler.begin(&params);
    *sample = changed;
    Ok(())
}

/// Of the last answer.
pub fn line(last: &Answered, talk: &Talk) -> String {
    let rate = |n: usize, d: std::time::Duration| if d.is_zero() { 0.0 } else { n as f64 / d.as_secs_f64() };
    let cache = talk.session.cache();
    format!(
        "[{} tokens read at {:.1} tok/s, {} generated at {:.1} tok/s{}; {} evicted, {} of {} slots live]",
        last.n_read,
        rate(last.n_read, last.read),
        last.n_generated,
        rate(last.n_generated.saturating_sub(1), last.generated),
        guessed(talk.session.guesses(), last.drafts),
        last.evicted,
        cache.n_live(),
        cache.n_slot(),
    )
}

fn stats(talk: &Talk, last: &Answered) -> String {
    let cache = talk.session.cache();
    format!(
        "{} tokens so far, {} kept of {} slots ({}, {}), {} evicted by {}, renumbered {} times; cache {}\nlast answer: {}",
        talk.session.n_past(),
        cache.n_live(),
        cache.n_slot(),
        cache.shape().type_names(),
        if cache.n_pinned() > 0 { format!("{} pinned", cache.n_pinned()) } else { "none pinned".into() },
        cache.n_evicted(),
        cache.policy().name(),
        cache.n_renumbered(),
        Bytes(cache.arena_bytes() as u64),
        line(last, talk)
    )
}

/// Shades from nothing to all.
const SHADES: [char; 6] = ['·', '░', '▒', '▓', '█', '█'];
const COLUMNS: usize = 72;
const LINES: usize = 16;

fn arena(talk: &Talk) -> String {
    let cache = talk.session.cache();
    let shape = cache.shape();
    if cache.n_live() == 0 {
        return "nothing is kept yet".into();
    }
    let next = u64::from(cache.next_pos());
    let columns = COLUMNS.min(next as usize);
    let mut lines = vec![format!(
        "positions 0 to {}, each column {} of them; shaded by how many are kept",
        next - 1,
        next.div_ceil(columns as u64)
    )];
    for layer in shape.layers().step_by(shape.n_layer.div_ceil(LINES)) {
        let mut kept = vec![0u64; columns];
        for head in shape.of(layer).heads() {
            cache.kept(layer, head).iter().for_each(|&pos| kept[(u64::from(pos) * columns as u64 / next) as usize] += 1);
        }
        let shade = |(i, n): (usize, &u64)| {
            let (first, end) = ((i as u64 * next).div_ceil(columns as u64), ((i as u64 + 1) * next).div_ceil(columns as u64));
            let all = (end - first).max(1) * shape.of(layer).n_head_kv as u64;
            SHADES[(n * 4).div_ceil(all).min(5) as usize]
        };
        lines.push(format!("layer {:>3} {}", layer.0, kept.iter().enumerate().map(shade).collect::<String>()));
    }
    lines.join("\n")
}
