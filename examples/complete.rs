//! Completes a prompt with the library: `cargo run --release --example complete -- MODEL.gguf PROMPT`.

use lowkey::gguf::GgufFile;
use lowkey::kv::{KvParams, Policy};
use lowkey::model::forward::Model;
use lowkey::session::{Session, SessionParams};
use lowkey::text::{Tokenizer, Utf8Stream, greedy};

/// Sixteen tokens that follow `prompt`, in 4 MiB of keys and values, whatever the prompt's length.
pub fn complete(model: &str, prompt: &str) -> lowkey::Result<String> {
    let file = GgufFile::open(model.as_ref())?;
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let model = Model::load(file)?;
    let (budget_bytes, policy) = (4 << 20, Policy::L2Attn);
    let params = SessionParams {
        n_streams: 1,
        n_log: 0,
        kv: KvParams { budget_bytes, policy, sinks: 4, pinned: 0, recent: None, rare: None, pool: None },
        k_type: None,
        v_type: None,
        past: None,
        n_stream: None,
        n_batch: 64,
        n_threads: None,
        kernels: "auto".into(),
        n_logits: 1,
        n_draft: 0,
        memory_bytes: None,
        mlock: false,
    };
    let layout = params.layout(&model)?;
    let mut session = Session::new(model, &layout)?;
    let (mut utf8, mut answer) = (Utf8Stream::new(), String::new());
    let prompt = tokenizer.encode(prompt, false, true)?;
    let mut logits = session.prefill(&prompt, |_| true)?.expect("nobody stops it");
    for _ in 0..16 {
        let token = greedy(logits)?;
        if tokenizer.is_eog(token) {
            break;
        }
        utf8.push(tokenizer.token_bytes(token, false), &mut answer);
        logits = session.step(token)?;
    }
    utf8.finish(&mut answer);
    Ok(answer)
}

pub fn main() -> lowkey::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, prompt] = &args[..] else { panic!("usage: complete MODEL.gguf PROMPT") };
    println!("{prompt}{}", complete(model, prompt)?);
    Ok(())
}
