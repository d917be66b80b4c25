//! The prompt of a run: the user's text, in the model's template or not, as tokens.

use crate::cli::setup::Opened;
use crate::error::{Error, Result, Setting};
use crate::text::{ChatTemplate, Message, Rendered, Tokenizer};

use super::args::RunArgs;

/// The text's tokens, of which there are `n_tokens`. `begins`: a stream begins with them.
pub fn encode_prompt(args: &RunArgs, text: &Rendered, n_tokens: usize, begins: bool, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut prompt = Vec::with_capacity(n_tokens);
    tokenizer.encode_into(&text.pieces(), begins, &mut prompt)?;
    if prompt.is_empty() && begins {
        let flag = if args.file.is_some() { "--file" } else { "--prompt" };
        return Err(Error::stopped(format!("{flag}: the prompt is empty, 0 tokens to start from; give some text")));
    }
    Ok(prompt)
}

/// The template of `--chat`, and what comes before the user's turn.
pub struct Chat<'a> {
    template: ChatTemplate,
    system: Option<&'a str>,
    parse_special: bool,
    /// Private memory for rendering, from above.
    bytes: usize,
}

impl<'a> Chat<'a> {
    pub fn new(args: &'a RunArgs, text_bytes: usize, opened: &Opened) -> Result<Self> {
        let template = match &args.template {
            Some(name) => ChatTemplate::named(name)?,
            None => ChatTemplate::from_gguf(&opened.model.file)?,
        };
        let system = args.system.as_deref();
        let bytes = template.plan_bytes(text_bytes + system.map_or(0, str::len));
        Ok(Chat { template, system, parse_special: args.parse_special, bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A conversation of the user's turn.
    pub fn render(&self, tokenizer: &Tokenizer, text: String) -> Result<Rendered> {
        self.render_turns(tokenizer, [Message::new("user", text)])
    }

    /// What follows an answer where the user says something more: the end of the assistant's turn, the user's, and the beginning of the
    /// assistant's next one. What came before does not matter to it.
    pub fn render_next(&self, tokenizer: &Tokenizer, text: String) -> Result<Rendered> {
        // An answer that nothing else in the conversation is.
        let mut answer = String::from("answer");
        while text.contains(&answer)
            || self.system.is_some_and(|system| system.contains(&answer))
            || self.template.source().contains(&answer)
        {
            answer.push('0');
        }
        let turns = [Message::new("user", "?"), Message::new("assistant", answer.as_str()), Message::new("user", text)];
        let rendered = self.render_turns(tokenizer, turns)?;
        let Some(at) = rendered.text.rfind(&answer) else {
            let what = "it does not show earlier answers, so that no conversation can go on in it; give another one";
            return Err(Error::usage(Setting::Template, what));
        };
        Ok(rendered.behind(at + answer.len()))
    }

    /// The tokens that a conversation begins with, whatever the user says.
    pub fn beginning(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let saying = |text: &str| tokenizer.encode_pieces(&self.render(tokenizer, text.into())?.pieces(), true);
        let mut one = saying("a")?;
        // What comes before the user's words may be one token with their beginning.
        for text in ["?", "\n\n?", " a"] {
            let n = one.iter().zip(&saying(text)?).take_while(|(a, b)| a == b).count();
            one.truncate(n);
        }
        Ok(one)
    }

    fn render_turns(&self, tokenizer: &Tokenizer, turns: impl IntoIterator<Item = Message>) -> Result<Rendered> {
        let system = self.system.map(|system| Message::new("system", system));
        let messages: Vec<_> = system.into_iter().chain(turns).collect();
        match self.parse_special {
            true => {
                let [bos, eos] = tokenizer.bos_and_eos_texts();
                Ok(Rendered::from(self.template.render_today(&messages, true, &bos, &eos)?))
            }
            false => self.template.render_for(tokenizer, &messages, true),
        }
    }
}

/// First tokens of the prompt that hold the system's turn, if it is to stay: what is the same whatever the user says.
pub fn n_pinned(args: &RunArgs, prompt: &[u32], chat: Option<&Chat>, tokenizer: &Tokenizer) -> Result<u32> {
    let Some(chat) = chat.filter(|chat| chat.system.is_some() && args.pin_system) else { return Ok(0) };
    let saying = |text: &str| tokenizer.encode_pieces(&chat.render(tokenizer, text.into())?.pieces(), true);
    let mut other = saying("")?;
    if other == prompt {
        other = saying("?")?;
    }
    let n = prompt.iter().zip(&other).take_while(|(a, b)| a == b).count() as u32;
    log::info!("{n} tokens of the system's turn are pinned");
    Ok(n)
}
