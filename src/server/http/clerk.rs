//! The clerk reads requests: parses, checks, renders and tokenises, one request at a time on a thread of its own. So the network
//! goes on meanwhile, and what reading takes in memory is taken once, however many clients there are.
//!
//! A template that would take more than its share of memory is stopped for good with all that it holds (`mem::confined`): its
//! thread sleeps until the process ends. A program that answers for months cannot collect such threads. Their number is therefore
//! bounded by `MAX_LOST`, which the plan counts; since the clerk renders one conversation at a time, no more can be under way. After
//! that no conversation is rendered any more: chats are refused with the advice to restart, and health says the same, so that a
//! supervisor does it. Shares are wide enough (`Conversation::text_bytes`) that only a template which multiplies its text gets there.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::{mpsc, oneshot};

use crate::mem::confined::n_lost;
use crate::mem::warm::warm_stack;

use super::WARM_STACK_BYTES;
use super::error::{Checked, Refusal};

/// Conversations that may be stopped for good. With one, what it keeps is what the next would have taken.
pub const MAX_LOST: usize = 1;
/// Requests that wait for the clerk hold their connections, and wait in those.
const DESK: usize = 1;
/// JSON has at most 64 levels, and rendering has a stack of its own.
const STACK_BYTES: usize = 1 << 20;

type Work = Box<dyn FnOnce() + Send>;

pub struct Clerk {
    work: mpsc::Sender<Work>,
}

impl Clerk {
    /// `ready` is called once it has begun.
    pub fn start(ready: impl FnOnce() + Send + 'static) -> std::io::Result<Clerk> {
        let (work, mut waiting) = mpsc::channel::<Work>(DESK);
        let run = move || {
            warm_stack::<WARM_STACK_BYTES>();
            ready();
            while let Some(work) = waiting.blocking_recv() {
                work();
            }
        };
        std::thread::Builder::new().name("clerk".into()).stack_size(STACK_BYTES).spawn(run)?;
        Ok(Clerk { work })
    }

    /// Has it done, unless the caller is gone before it begins.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Checked<T> + Send + 'static) -> Checked<T> {
        let (done, result) = oneshot::channel();
        let job = move || {
            if done.is_closed() {
                return;
            }
            if let Ok(answer) = catch_unwind(AssertUnwindSafe(work)) {
                let _ = done.send(answer);
            }
        };
        let broken = || Refusal::broken("the server failed to read this request: its log says more");
        self.work.send(Box::new(job)).await.map_err(|_| broken())?;
        result.await.map_err(|_| broken())?
    }
}

/// Whether conversations can still be rendered.
pub fn check_rendering() -> Checked<()> {
    if n_lost() < MAX_LOST {
        return Ok(());
    }
    Err(Refusal::broken(
        "the chat template took more memory than it may, which it keeps until the server is restarted; until then no chat is \
         answered: restart it, and set another template if it comes again"
            .to_string(),
    ))
}
