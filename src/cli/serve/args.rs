//! The flags of `lowkey serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::args::{DraftArgs, ModelArgs, OrMinusOne, SampleArgs};
use crate::cli::constraint::region_bytes;
use crate::cli::text::unreadable;
use crate::error::{Error, Result};
use crate::server::http::{self, Settings};
use crate::units::Bytes;

#[derive(Args, Clone)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Addresses to listen on, or a path that ends in .sock; several with commas
    #[arg(long, value_name = "LIST", default_value = "127.0.0.1", value_delimiter = ',')]
    pub host: Vec<String>,
    /// The port of all addresses
    #[arg(long, value_name = "N", default_value = "8080")]
    pub port: u16,
    /// Conversations that are held at once; --kv-budget is shared equally among them
    #[arg(long, value_name = "N", default_value = "1")]
    pub streams: usize,
    /// Tokens of prompt and answer that a stream may have with --overflow error [default: the trained context, or what the arena
    /// holds if that is less]
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,
    /// What happens when a conversation outgrows its memory: evict and go on, or refuse as llama.cpp does
    #[arg(long, value_enum, value_name = "WHAT", default_value = "evict")]
    pub overflow: Overflow,
    /// Tokens of an answer at most, and where a request does not say; -1 for no limit
    #[arg(long, value_name = "N", default_value = "1024")]
    pub max_tokens: OrMinusOne<usize>,
    /// Requests that wait for a stream at most; more are refused with 503
    #[arg(long, value_name = "N", default_value = "4")]
    pub queue: usize,
    /// Seconds that a request waits for a stream at most
    #[arg(long, value_name = "S", default_value = "120")]
    pub queue_wait: Seconds,
    /// Connections held at once, two of them for health, metrics and the page [default: streams + queue + 8]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// The largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "256KiB")]
    pub max_body: Bytes,
    /// Seconds for a whole head, for each 64 KiB of a body, and for a write to be taken
    #[arg(long, value_name = "S", default_value = "10")]
    pub io_timeout: Seconds,
    /// Seconds that an idle connection is kept
    #[arg(long, value_name = "S", default_value = "15")]
    pub keep_alive: Seconds,
    /// Seconds of silence after which a stream of events gets a comment; 0: never
    #[arg(long, value_name = "S", default_value = "15")]
    pub ping: Seconds,
    /// Keys, with commas, one of which requests must bear; may be given several times
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub api_key: Vec<String>,
    /// A file of keys, one a line, which may hold commas
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Origins whose pages may use the server, with commas; localhost for any port of this machine, or *
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
    /// Let pages of those origins send what browsers keep for this server, even with *
    #[arg(long)]
    pub cors_credentials: bool,
    /// Names under which the server may be asked for, beside its addresses and localhost
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub allowed_hosts: Vec<String>,
    /// Names of the model, with commas [default: the file's name without .gguf]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub alias: Vec<String>,
    /// Words that the list of models shows, with commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub tags: Vec<String>,
    /// A Jinja template to use instead of the model's own: a file, or a name such as chatml, llama3, gemma
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<PathBuf>,
    /// Whether a model that can think before it answers does
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub thinking: Thinking,
    /// Never evict the system's turn, of whatever policy protects sinks
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub pin_system: bool,
    /// Tokens at the head of a stream that a later prompt is compared with, at least as many as it has slots
    #[arg(long, value_name = "N", default_value = "8192")]
    pub lookup: usize,
    /// Where a prompt changes in a few places, move runs of at least N tokens behind the change instead of reading them again. It is
    /// not exact; 0: never
    #[arg(long, value_name = "N", default_value = "0")]
    pub reuse: usize,
    /// Memory that grammars and schemas of answers share; 0: requests for them are refused
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub grammar_memory: Bytes,
    /// Seconds that answers under way have when the server is told to stop
    #[arg(long, value_name = "S", default_value = "2")]
    pub stop_wait: Seconds,
    /// Keep conversations and system turns in this folder, so that they need not be read again after a restart
    #[arg(long, value_name = "DIR")]
    pub sessions: Option<PathBuf>,
    /// The most that they may take there, with their pasts (--past)
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub session_space: Bytes,
    /// Seconds after which an idle conversation is saved
    #[arg(long, value_name = "S", default_value = "60")]
    pub save_after: Seconds,
    /// Leave out `/metrics`
    #[arg(long)]
    pub no_metrics: bool,
    /// Leave out `/slots`
    #[arg(long)]
    pub no_slots: bool,
    /// Leave out the page at `/`
    #[arg(long)]
    pub no_ui: bool,
    /// Leave out Ollama's paths, `/api/…`
    #[arg(long)]
    pub no_ollama: bool,
    #[command(flatten)]
    pub drafts: DraftArgs,
    /// Sampling where a request does not say; each request without a seed starts from this one
    #[command(flatten)]
    pub sample: SampleArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Overflow {
    Evict,
    Error,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Thinking {
    Auto,
    On,
    Off,
}

/// A time of so many seconds, up to a year.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub Duration);

impl std::str::FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let seconds = text.parse::<f64>().ok().filter(|s| (0.0..=31_536_000.0).contains(s));
        seconds.map(|s| Seconds(Duration::from_secs_f64(s))).ok_or(format!("'{text}' is not a time in seconds, such as 15"))
    }
}

/// What a list on the command line holds, without what is empty.
fn words(list: &[String]) -> Vec<String> {
    list.iter().map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

fn check_keys(flag: &'static str, keys: &[String]) -> Result<()> {
    match keys.iter().all(|key| http::can_be_key(key)) {
        true => Ok(()),
        false => {
            let what =
                "a key has a line break or another control character, which no request can bear: give one of letters and digits";
            Err(Error::usage(flag, what))
        }
    }
}

impl ServeArgs {
    /// Keys of the flags and of the file.
    fn keys(&self) -> Result<Vec<String>> {
        let mut keys = words(&self.api_key);
        // Such as of a variable that is not set: without it the server would be open to all.
        if keys.len() < self.api_key.len() {
            return Err(Error::usage(
                "--api-key",
                "the key is empty: give one, or leave it out, and whoever reaches the server may use it",
            ));
        }
        check_keys("--api-key", &keys)?;
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path)
                .map_err(|e| unreadable("--api-key-file", path, &e, "a text file with a key on each line"))?;
            let before = keys.len();
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
            if keys.len() == before {
                return Err(Error::usage("--api-key-file", format!("{}: no keys in it: one a line", path.display())));
            }
            check_keys("--api-key-file", &keys[before..])?;
        }
        Ok(keys)
    }

    /// Those of `--allowed-hosts`.
    fn allowed_hosts(&self) -> Result<Vec<String>> {
        let hosts = words(&self.allowed_hosts);
        match hosts.iter().find(|host| !http::can_be_host(host)) {
            None => Ok(hosts),
            Some(host) => Err(Error::usage(
                "--allowed-hosts",
                format!(
                    "'{}' is no name of a host: give it without http://, port and path, such as pi.local",
                    host.escape_debug()
                ),
            )),
        }
    }

    /// Those of `--cors-origins`.
    fn cors_origins(&self) -> Result<Vec<String>> {
        let origins = words(&self.cors_origins);
        match origins.iter().find(|origin| !http::can_be_origin(origin)) {
            None => Ok(origins),
            Some(origin) => Err(Error::usage(
                "--cors-origins",
                format!(
                    "'{}' is no origin as browsers say it: give its scheme, its host in small letters, and its port where it is not \
                     the scheme's own, such as http://pi.local:3000, without a path; or localhost, or *",
                    origin.escape_debug()
                ),
            )),
        }
    }

    /// For streams of `n_ctx` tokens.
    pub fn settings(&self, n_ctx: usize, max_repeat_last_n: usize) -> Result<Settings> {
        let hosts = words(&self.host);
        if hosts.is_empty() {
            return Err(Error::usage("--host", "give an address to listen on, such as 127.0.0.1"));
        }
        if self.io_timeout.0.is_zero() {
            return Err(Error::usage("--io-timeout", "in 0 seconds no request can come: give some, such as 10"));
        }
        if self.max_body.0 < 1024 || self.max_body.0 > 1 << 30 {
            return Err(Error::usage("--max-body", format!("{} cannot be used: give 1KiB to 1GiB", self.max_body)));
        }
        let n_connections = self.connections.unwrap_or(self.streams + self.queue + 8);
        if !(3..=4096).contains(&n_connections) || self.queue > 1024 {
            return Err(Error::usage("--connections", "give 3 to 4096 connections, and a --queue of at most 1024"));
        }
        Ok(Settings {
            hosts,
            port: self.port,
            n_streams: self.streams,
            n_ctx,
            overflow: match self.overflow {
                Overflow::Evict => http::Overflow::Evict,
                Overflow::Error => http::Overflow::Error,
            },
            max_tokens: self.max_tokens.0.unwrap_or(usize::MAX),
            n_queue: self.queue,
            queue_wait: self.queue_wait.0,
            n_connections,
            max_body: self.max_body.0 as usize,
            io_timeout: self.io_timeout.0,
            keep_alive: self.keep_alive.0,
            ping: self.ping.0,
            api_keys: self.keys()?,
            cors_origins: self.cors_origins()?,
            cors_credentials: self.cors_credentials,
            allowed_hosts: self.allowed_hosts()?,
            thinking: match self.thinking {
                Thinking::Auto => http::Thinking::Auto,
                Thinking::On => http::Thinking::On,
                Thinking::Off => http::Thinking::Off,
            },
            pin_system: self.pin_system,
            grammar_bytes: region_bytes(self.grammar_memory)?,
            reuse_runs: self.reuse,
            n_draft: self.drafts.speculate,
            max_repeat_last_n,
            metrics: !self.no_metrics,
            slots: !self.no_slots,
            ui: !self.no_ui,
            ollama: !self.no_ollama,
            sessions: self.sessions.is_some(),
            verbose: log::max_level() >= log::LevelFilter::Debug,
            stop_wait: self.stop_wait.0,
        })
    }
}
