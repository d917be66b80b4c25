//! The prompt of a run: the user's text, in the model's template or not, as tokens.

use crate::cli::setup::Opened;
use crate::error::{Error, Result};
use crate::text::{ChatTemplate, Message, Rendered, Tokenizer};

use super::args::RunArgs;

pub fn encode_prompt(args: &RunArgs, text: &Rendered, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut prompt = tokenizer.encode_pieces(&text.pieces(), true)?;
    prompt.shrink_to_fit();
    if prompt.is_empty() {
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

    pub fn render(&self, tokenizer: &Tokenizer, text: String) -> Result<Rendered> {
        let system = self.system.map(|system| Message::new("system", system));
        let messages: Vec<_> = system.into_iter().chain([Message::new("user", text)]).collect();
        match self.parse_special {
            true => {
                let [bos, eos] = tokenizer.bos_and_eos_texts();
                Ok(Rendered::from(self.template.render(&messages, true, &bos, &eos)?))
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
