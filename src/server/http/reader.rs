//! An answer as it comes, or as a whole: what of it is thought, what is text, and what calls a tool.

use super::app::App;
use super::calls::{Calls, Told};
use super::harmony::Got;
use super::thinking::Splitter;
use super::tools::{self, Tools};

#[derive(Clone)]
pub struct Reader {
    splitter: Splitter,
    pub calls: Calls,
}

impl Reader {
    /// `tools`: what may be called.
    pub fn new(app: &App, splitter: Splitter, tools: Option<&Tools>) -> Reader {
        let family = tools.map(|_| tools::family(app));
        let splitter = match tools.filter(|_| family.is_some_and(|family| family.is_harmony())) {
            Some(tools) => splitter.with_calls(tools.names().map(str::to_owned).collect()),
            None => splitter,
        };
        Reader { splitter, calls: Calls::new(family) }
    }

    pub fn push(&mut self, text: &str) -> Vec<Told> {
        let (mut got, mut told) = (Vec::new(), Vec::new());
        self.splitter.push(text, &mut got);
        self.take(got, &mut told);
        told
    }

    /// The end: what was held back.
    pub fn finish(&mut self) -> Vec<Told> {
        let (mut got, mut told) = (Vec::new(), Vec::new());
        self.splitter.finish(&mut got);
        self.take(got, &mut told);
        self.calls.finish(&mut told);
        told
    }

    fn take(&mut self, got: Vec<Got>, told: &mut Vec<Told>) {
        for got in got {
            match got {
                Got::Thought(text) => told.push(Told::Thought(text)),
                Got::Text(text) => self.calls.push(&text, told),
                Got::Call(name) => self.calls.begin(name, told),
                Got::Arguments(text) => self.calls.add(text, told),
            }
        }
    }

    /// The whole of an answer: its thoughts and its text; its calls are in `calls`.
    pub fn whole(&mut self, text: &str) -> (String, String) {
        let (mut thoughts, mut content) = (String::new(), String::new());
        for told in self.push(text).into_iter().chain(self.finish()) {
            match told {
                Told::Thought(text) => thoughts.push_str(&text),
                Told::Text(text) => content.push_str(&text),
                Told::Begin { .. } | Told::Arguments { .. } => {}
            }
        }
        (thoughts, content)
    }
}
