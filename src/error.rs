//! The one error type of the crate, and the exit code that goes with each kind.
//!
//! Every message is one line that says what is wrong, where, and what to do about it. Mistakes of the user
//! (settings, files, budgets) are values of this type; mistakes of ours are `assert!`s. The library does not know what a
//! program calls its settings: a message carries them as `Setting`s, which read as plain words here, and which the command
//! line spells as flags (`Message::spelled`).

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

macro_rules! settings {
    ($($name:ident $words:literal),+ $(,)?) => {
        /// What a message may name as the cause or as the remedy.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Setting {
            $(#[doc = $words] $name,)+
            /// One of the program above the library, as it is to be shown.
            Own(&'static str),
        }

        impl Setting {
            pub const ALL: &[Setting] = &[$(Setting::$name),+];

            pub fn words(self) -> &'static str {
                match self {
                    $(Setting::$name => $words,)+
                    Setting::Own(name) => name,
                }
            }
        }
    };
}

settings! {
    KvBudget "the KV budget", Evict "the eviction policy", Sinks "the number of sinks", Recent "the number of recent tokens",
    Batch "the batch", Threads "the number of threads", Kernels "the kernel set", Memory "the memory limit",
    Mlock "locking the weights", System "the system's turn", PinSystem "a system's turn that is not pinned",
    Template "the chat template", Temp "the temperature", TopP "top-p", MinP "min-p", RepeatPenalty "the repeat penalty",
    RepeatLastN "the window of the repeat penalty", File "the text", Lengths "the prompt lengths", Plot "the picture",
    Pack "the packing", PackAnew "the packing anew", PackCheck "the check of the pack",
    PresencePenalty "the presence penalty", FrequencyPenalty "the frequency penalty",
    Sessions "the folder of sessions", Session "the session", SessionSpace "the space for sessions",
    KvType "the types of keys and values", Rare "the share for rare entries", Pool "the pool of neighbours",
    Streams "the number of streams", Ctx "the context", Speculate "the number of guesses",
    Past "the folder of the past", PastSpace "the space for the past", Recall "the number of pieces to recall",
}

impl From<&'static str> for Setting {
    fn from(name: &'static str) -> Self {
        Setting::Own(name)
    }
}

/// Text in which settings are named.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(Cow<'static, str>),
    Setting(Setting),
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Message(vec![Part::Text(text.into())])
    }
}

impl From<&'static str> for Message {
    fn from(text: &'static str) -> Self {
        Message(vec![Part::Text(text.into())])
    }
}

impl From<Setting> for Message {
    fn from(setting: Setting) -> Self {
        Message(vec![Part::Setting(setting)])
    }
}

impl FromIterator<Message> for Message {
    fn from_iter<I: IntoIterator<Item = Message>>(messages: I) -> Self {
        Message(messages.into_iter().flat_map(|message| message.0).collect())
    }
}

/// A `Message` of texts and settings: `message!["the arena is full: raise ", Setting::KvBudget]`.
#[macro_export]
macro_rules! message {
    ($($part:expr),+ $(,)?) => {
        [$($crate::error::Message::from($part)),+].into_iter().collect::<$crate::error::Message>()
    };
}
pub use message;

impl Message {
    /// The text, with settings as `spell` calls them.
    pub fn spelled(&self, spell: &dyn Fn(Setting) -> String) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.to_string(),
            Part::Setting(setting) => spell(*setting),
        };
        self.0.iter().map(part).collect()
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spelled(&|setting| setting.words().into()))
    }
}

#[derive(Debug)]
pub enum Error {
    /// A setting whose value cannot be used: exit 2.
    Usage { setting: Setting, what: Message },
    /// The operating system refused something about a file.
    Io { path: PathBuf, source: std::io::Error },
    /// The bytes of a model file are not what the format promises.
    Gguf { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// The file is well-formed and asks for something this engine does not do.
    Unsupported { path: PathBuf, what: Message },
    /// A size set by the user does not hold what was asked: exit 1. Says which size would do.
    Budget { setting: Setting, what: Message },
    /// The stream cannot go on (an arena that may not evict is full, an empty prompt …).
    Stopped(Message),
    /// The reader of our output went away: exit 0, silently.
    BrokenPipe,
}

impl Error {
    pub fn usage(setting: impl Into<Setting>, what: impl Into<Message>) -> Self {
        Error::Usage { setting: setting.into(), what: what.into() }
    }

    pub fn budget(setting: impl Into<Setting>, what: impl Into<Message>) -> Self {
        Error::Budget { setting: setting.into(), what: what.into() }
    }

    pub fn stopped(what: impl Into<Message>) -> Self {
        Error::Stopped(what.into())
    }

    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    pub fn gguf(path: impl AsRef<Path>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Gguf { path: path.as_ref().to_owned(), source: Box::new(source) }
    }

    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<Message>) -> Self {
        Error::Unsupported { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// The line as it is shown.
    pub fn message(&self) -> Message {
        match self {
            Error::Usage { setting, what } | Error::Budget { setting, what } => message![*setting, ": ", what.clone()],
            Error::Io { path, source } => format!("{}: {source}", path.display()).into(),
            Error::Gguf { path, source } => format!("{}: {source}", path.display()).into(),
            Error::Unsupported { path, what } => message![format!("{}: ", path.display()), what.clone()],
            Error::Stopped(what) => what.clone(),
            Error::BrokenPipe => "the reader of the output has gone".into(),
        }
    }

    /// 0 done, 1 failure, 2 usage.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::BrokenPipe => 0,
            Error::Usage { .. } => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl std::error::Error for Error {}
