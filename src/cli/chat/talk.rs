//! A conversation in one stream: what has been said is taken in once, and each turn adds to it. Only where the template changes what
//! was said before is the conversation read again, and that is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::constraint::draw;
use crate::cli::interrupt;
use crate::cli::output::{say, stream};
use crate::cli::progress;
use crate::cli::writer::Writer;
use crate::constraint::Grammar;
use crate::error::{Error, Result};
use crate::model::forward::Logits;
use crate::session::{DraftCounts, Session, Steps};
use crate::text::{ChatTemplate, Conversation, Rendered, Sampler, Tokenizer};

/// Text of a conversation that is held, for its template; older turns are only in the stream from there on.
pub const MAX_BYTES: usize = 256 << 10;

/// Stands for an answer of which only its place is known.
const UNKNOWN: &str = "an answer of before, 3f81c2";

pub struct Talk<'a> {
    pub session: &'a mut Session,
    pub sampler: Sampler,
    pub template: ChatTemplate,
    pub tokenizer: &'a Tokenizer,
    pub system: Option<String>,
    pub pins_system: bool,
    pub thinks: Option<bool>,
    pub n_answer: usize,
    /// Whether control characters of answers are shown as such.
    pub escapes: bool,
    /// What each answer obeys.
    pub grammar: Option<Arc<Grammar>>,
    /// `(role, text)` after the system's turn.
    turns: Vec<(&'static str, String)>,
    /// The text that the stream took in before the last answer; none where turns were left out.
    asked: Option<String>,
    /// A token that was generated and not taken in.
    pending: Option<u32>,
    /// Tokens of the stream before the last answer.
    n_before: u64,
    /// Whether older turns were left out.
    is_cut: bool,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    pub n_read: usize,
    pub read: Duration,
    pub n_generated: usize,
    pub generated: Duration,
    pub evicted: u64,
    pub drafts: DraftCounts,
    pub was_interrupted: bool,
}

impl<'a> Talk<'a> {
    pub fn new(session: &'a mut Session, sampler: Sampler, template: ChatTemplate, tokenizer: &'a Tokenizer) -> Self {
        Talk {
            session,
            sampler,
            template,
            tokenizer,
            system: None,
            pins_system: true,
            thinks: None,
            n_answer: usize::MAX,
            escapes: false,
            grammar: None,
            turns: Vec::new(),
            asked: None,
            pending: None,
            n_before: 0,
            is_cut: false,
        }
    }

    /// Forgets all but the system's turn.
    pub fn reset(&mut self) {
        self.session.clear();
        self.turns.clear();
        (self.asked, self.pending, self.n_before, self.is_cut) = (None, None, 0, false);
    }

    /// The stream is another's that was kept: what was said in it is not known, only that it ends with an answer.
    pub fn go_on(&mut self) {
        self.turns = vec![("user", "?".to_owned()), ("assistant", UNKNOWN.to_owned())];
        (self.asked, self.pending, self.n_before, self.is_cut) = (None, None, 0, true);
    }

    /// Takes in what was generated last, so that the stream is all of the conversation.
    pub fn settle(&mut self) -> Result<()> {
        if let Some(token) = self.pending.take() {
            let (engine, stream) = self.session.parts();
            engine.prefill(stream, &[token], Logits::Last)?;
        }
        Ok(())
    }

    /// The text of the stream, where it is known.
    pub fn text(&self) -> String {
        match (&self.asked, self.turns.last()) {
            (Some(asked), Some(("assistant", answer))) => format!("{asked}{answer}"),
            _ => String::new(),
        }
    }

    /// Says `text` to the model, and streams what it answers.
    pub fn say(&mut self, text: String) -> Result<Answered> {
        self.turns.push(("user", text));
        self.leave_out_old();
        match self.answer() {
            Err(error @ (Error::Stopped(_) | Error::Unsupported { .. }))
                if self.turns.last().is_some_and(|(role, _)| *role == "user") =>
            {
                // As if it had not been said.
                self.turns.pop();
                Err(error)
            }
            other => other,
        }
    }

    /// Another answer in place of the last.
    pub fn regenerate(&mut self) -> Result<Answered> {
        if self.turns.last().is_some_and(|(role, _)| *role == "assistant") {
            self.turns.pop();
        }
        if self.turns.is_empty() {
            return Err(Error::stopped("nothing has been said that could be answered again"));
        }
        self.pending = None;
        let n = self.n_before.saturating_sub(1);
        let (_, stream) = self.session.parts();
        match stream.cannot_rewind(n) {
            None if n > 0 => {
                // The last token of the prompt is read again, for the logits after it.
                let last = stream.first_tokens()[n as usize];
                stream.keep(n as usize);
                self.generate(&[last])
            }
            why => {
                let why = why.unwrap_or("it is short");
                say(&format!("The conversation is read again, since {why}."));
                self.asked = None;
                self.session.clear();
                self.answer()
            }
        }
    }

    fn leave_out_old(&mut self) {
        let bytes = |turns: &[(&str, String)]| turns.iter().map(|(_, text)| text.len()).sum::<usize>();
        while bytes(&self.turns) > MAX_BYTES && self.turns.len() > 3 {
            self.turns.drain(..2);
            (self.is_cut, self.asked) = (true, None);
        }
    }

    fn render(&self, turns: &[(&'static str, String)]) -> Result<Rendered> {
        let system = self.system.iter().map(|text| ("system", text));
        let all = system.chain(turns.iter().map(|(role, text)| (*role, text)));
        let mut conversation = Conversation {
            messages: all.map(|(role, text)| serde_json::json!({ "role": role, "content": text })).collect(),
            add_generation_prompt: true,
            ..Conversation::default()
        };
        if let Some(thinks) = self.thinks {
            conversation.variables.insert("enable_thinking".into(), thinks.into());
        }
        self.template.render_conversation(self.tokenizer, &conversation)
    }

    /// Takes in what the stream lacks of the conversation, and answers.
    fn answer(&mut self) -> Result<Answered> {
        let rendered = self.render(&self.turns)?;
        // What follows on what the stream holds.
        let answered = self.turns.len().checked_sub(2).map(|i| &self.turns[i]).filter(|(role, _)| *role == "assistant");
        let follows = answered.and_then(|(_, answer)| match &self.asked {
            Some(asked) => {
                let at = asked.len() + answer.len();
                rendered.text.strip_prefix(asked.as_str())?.starts_with(answer.as_str()).then_some(at)
            }
            None if self.is_cut => rendered.text.rfind(answer.as_str()).map(|at| at + answer.len()),
            None => None,
        });
        let tokens = match follows {
            Some(at) => {
                let rest = self.tokenizer.encode_pieces(&rendered.pieces_from(at), false)?;
                self.pending.take().into_iter().chain(rest).collect()
            }
            None => {
                let all = self.tokenizer.encode_pieces(&rendered.pieces(), true)?;
                self.pending = None;
                let (_, stream) = self.session.parts();
                let n_cached = stream.worth_keeping(stream.prefix(&all).n_cached, all.len());
                if stream.n_past() > 0 && n_cached == 0 {
                    say("The template has changed what was said before, so the conversation is read again.");
                }
                stream.keep(n_cached);
                if n_cached == 0 {
                    self.pin()?;
                }
                all[n_cached..].to_vec()
            }
        };
        crate::cli::setup::check_tokens(self.session, &tokens)?;
        self.asked = if self.is_cut { None } else { Some(rendered.text) };
        self.generate(&tokens)
    }

    /// Pins the tokens that are the same whatever the user says.
    fn pin(&mut self) -> Result<()> {
        if self.system.is_none() || !self.pins_system {
            return Ok(());
        }
        let saying = |text: &str| self.tokenizer.encode_pieces(&self.render(&[("user", text.to_owned())])?.pieces(), true);
        let (a, b) = (saying("a")?, saying("?")?);
        let n = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let (_, stream) = self.session.parts();
        if !stream.pin(n) {
            let n_slot = stream.cache().n_slot();
            log::warn!(
                "the {n} tokens of the system's turn are too many to be kept for good in {n_slot} slots: they go like the rest"
            );
        }
        Ok(())
    }

    /// Takes in `tokens` and generates.
    fn generate(&mut self, tokens: &[u32]) -> Result<Answered> {
        let mut done = Answered { n_read: tokens.len(), ..Answered::default() };
        let (before, began) = (self.session.cache().n_evicted(), Instant::now());
        let n_answer = self.n_answer;
        let Talk { session, sampler, tokenizer, escapes, .. } = self;
        tokens.iter().for_each(|&token| sampler.accept(token));
        let bar = progress::tokens("reading".into(), tokens.len());
        let (engine, memory) = session.parts();
        let mut n_read = 0;
        while n_read < tokens.len() {
            if interrupt::raised() {
                bar.finish_and_clear();
                // Half a turn is no place to go on from: the next turn reads it again.
                memory.clear();
                (self.asked, self.pending) = (None, None);
                self.turns.pop();
                return Ok(Answered { was_interrupted: true, read: began.elapsed(), n_read, ..done });
            }
            let n = engine.together(memory, tokens.len() - n_read);
            let wanted = if n_read + n == tokens.len() { Logits::Last } else { Logits::None };
            engine.prefill(memory, &tokens[n_read..n_read + n], wanted)?;
            n_read += n;
            bar.set_position(n_read as u64);
        }
        bar.finish_and_clear();
        self.n_before = memory.n_past();
        done.read = began.elapsed();

        let began = Instant::now();
        memory.begin_drafts();
        let mut steps = Steps::new(engine, memory);
        let mut logits = steps.logits();
        let (mut answer, mut pending, escapes) = (String::new(), None, *escapes);
        let mut live = self.grammar.as_ref().map(|grammar| grammar.begin());
        let mut writer = Writer::new(&[], |text: &str| {
            answer.push_str(text);
            if escapes { stream(&escaped(text)) } else { stream(text) }
        });
        let ended = loop {
            if done.n_generated == n_answer {
                break Ok(());
            }
            if interrupt::raised() {
                done.was_interrupted = true;
                break Ok(());
            }
            let token = match draw(sampler, &mut live, logits) {
                Ok(Some(token)) => token,
                ended => break ended.map(|_| ()),
            };
            sampler.accept(token);
            done.n_generated += 1;
            if tokenizer.is_eog(token) {
                pending = None;
                break Ok(());
            }
            writer.push(tokenizer.token_bytes(token, false))?;
            pending = Some(token);
            if live.as_mut().is_some_and(|live| live.accept(token)) {
                break Ok(());
            }
            if done.n_generated < n_answer {
                logits = match steps.step(token, n_answer - done.n_generated - 1) {
                    Ok(logits) => logits,
                    Err(error) => break Err(error),
                };
                pending = None;
            }
        };
        writer.finish()?;
        drop(writer);
        drop(steps);
        stream("\n")?;
        done.generated = began.elapsed();
        done.drafts = self.session.draft_counts();
        done.evicted = self.session.cache().n_evicted() - before;
        self.pending = pending;
        self.turns.push(("assistant", answer));
        ended.map(|()| done)
    }
}

/// Control characters, which might move the cursor or worse, as text.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && c != '\n' && c != '\t' {
            true => out.extend(c.escape_debug()),
            false => out.push(c),
        }
    }
    out
}
