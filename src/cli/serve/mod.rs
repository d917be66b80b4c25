//! `lowkey serve`: the model behind HTTP, in a memory that is taken before the first request.

mod args;
mod model;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::constraint::Constraints;
use crate::error::{Error, Result, Setting, message};
use crate::kv::Policy;
use crate::kv::past::disk::Pulse;
use crate::mem::warm::{settle_heap, share_heap, warm_stack};
use crate::server::desk::Desk;
use crate::server::http::{Network, Settings, Shared, WARM_STACK_BYTES};
use crate::server::keeper::Keeper;
use crate::server::notify::Supervisor;
use crate::server::scheduler::Scheduler;
use crate::server::seat::SeatSizes;
use crate::session::Engine;
use crate::session_file::{Fingerprint, Limits, Shelf};
use crate::text::{ChatTemplate, Held};
use crate::units::Bytes;

use super::args::Evict;
use super::interrupt;
use super::past::SAVED;
use super::sessions::unusable;
use super::setup::{Done, Opened, open_with};
use super::{output::say, status::rss_anon_bytes};
pub use args::{Overflow, ServeArgs};
use model::info;

/// The longest window of penalties that a request may ask for.
const MAX_LAST_N: usize = 1024;
/// A stop text of a request at most.
const STOP_BYTES: usize = 64;

/// A server that is ready but for its memory.
struct Ready {
    opened: Opened,
    settings: Settings,
    template: std::result::Result<ChatTemplate, String>,
    sizes: SeatSizes,
    n_ctx: usize,
    /// Of connections and requests.
    heap_bytes: usize,
}

pub fn run(args: ServeArgs) -> Result<Done> {
    let started = Instant::now();
    share_heap();
    let Ready { opened, settings, template, sizes, n_ctx, heap_bytes } = match ready(&args)? {
        Ok(ready) => ready,
        Err(planned) => return Ok(Done::Planned(planned.into())),
    };
    // Before anything is read: an address that is taken is told at once, and who asks early learns that the model is being loaded.
    let network = Network::open(&settings)?;
    let addresses = network.addresses();
    let tokenizer = Arc::new(opened.tokenizer()?);
    let desk = Arc::new(Desk::new(args.streams, args.queue));
    let sampling = args.sample.params(opened.model.config.n_ctx);
    let plan_bytes = opened.plan.private_bytes();
    let template_source = template.as_ref().map_or(Vec::new(), |template| template.source().as_bytes().to_vec());
    let model = info(&opened.model, &args.alias, &args.tags);
    let constraints = (settings.grammar_bytes > 0).then(|| Constraints::new(&tokenizer, settings.grammar_bytes));
    let shared = Shared::new(desk.clone(), tokenizer.clone(), template, model, sampling, plan_bytes);
    let shared = Arc::new(shared.with_constraints(constraints));
    // What clients will make it take, all of it: after this nothing grows.
    settle_heap(heap_bytes);
    interrupt::defer();
    interrupt::ignore_hangups()?;
    let stop_wait = settings.stop_wait;
    let serving = {
        let shared = shared.clone();
        let serve = move || network.serve(settings, shared);
        std::thread::Builder::new().name("network".into()).stack_size(NETWORK_STACK_BYTES).spawn(serve)
    };
    let serving = serving.map_err(|e| Error::stopped(format!("the system has no memory for another thread: {e}")))?;

    let Opened { model, layout, .. } = opened;
    let (name, n_slot) = (model.config.arch.name, layout.n_slot);
    let engine = Engine::new(model, &layout)?;
    let limit = (args.overflow == Overflow::Error).then_some(n_ctx);
    let supervisor = Arc::new(Supervisor::find());
    let mut scheduler = Scheduler::new(engine, &layout, &sizes, desk.clone(), tokenizer, limit)?;
    if let Some(path) = &args.sessions {
        let fingerprint = Fingerprint::of(&scheduler.model().file, &template_source, scheduler.cache());
        scheduler.keep(keeper(path, &args, fingerprint, &supervisor, &desk)?);
    }
    warm_stack::<ENGINE_STACK_BYTES>();
    shared.set_ready();
    supervisor.ready();
    let places: Vec<String> = addresses.iter().map(|address| format!("http://{address}")).collect();
    say(&format!(
        "ready after {:.0} ms: {name} on {}; {} of {n_slot} slots each, private memory {} of {} planned",
        started.elapsed().as_secs_f64() * 1e3,
        if places.is_empty() { args.host.join(", ") } else { places.join(", ") },
        if args.streams == 1 { "1 stream".to_owned() } else { format!("{} streams", args.streams) },
        Bytes(rss_anon_bytes()),
        Bytes(plan_bytes),
    ));

    let mut stopping: Option<Instant> = None;
    let is_over = || {
        if interrupt::raised() && stopping.is_none() {
            stopping = Some(Instant::now());
            log::info!("stopping: answers under way have {:.1} s", stop_wait.as_secs_f64());
            supervisor.stopping();
            desk.stop();
            shared.stop();
        }
        stopping.is_some_and(|since| since.elapsed() >= stop_wait) || serving.is_finished()
    };
    scheduler.run(|| supervisor.alive(), is_over);
    supervisor.stopping();
    shared.stop();
    match serving.join() {
        Ok(served) => served.map(|()| {
            // A stop that was asked for is no failure.
            interrupt::take();
            Done::Exit(0)
        }),
        Err(_) => Err(Error::stopped("the network thread has ended by a fault of lowkey: please report what the log says")),
    }
}

/// Who keeps the sessions, in the folder at `path`; the supervisor hears of it while they are saved and restored.
fn keeper(
    path: &Path,
    args: &ServeArgs,
    fingerprint: Fingerprint,
    supervisor: &Arc<Supervisor>,
    desk: &Arc<Desk>,
) -> Result<Keeper> {
    let told = supervisor.clone();
    // Pasts count also where these streams have none: they may be there from before.
    let shelf = Shelf::open_with_pasts(path, Limits::of(args.session_space.0), Pulse::new(move || told.alive()));
    let shelf = shelf.map_err(|e| unusable(path, &e))?;
    Keeper::new(shelf, fingerprint, args.save_after.0, desk.clone())
        .map_err(|e| Error::stopped(format!("the system has no memory for sessions: {e}")))
}

/// What a pass takes of the engine's stack, which is of the plan's line `process`.
const ENGINE_STACK_BYTES: usize = 256 << 10;
/// The stack of the thread that serves.
const NETWORK_STACK_BYTES: usize = 1 << 20;
/// What of the stacks of the network's thread and of the clerk is resident.
const NETWORK_BYTES: usize = 2 * (WARM_STACK_BYTES + (32 << 10));

/// Plans the server; the plan alone where no more is wanted.
fn ready(args: &ServeArgs) -> Result<std::result::Result<Ready, Opened>> {
    if args.model.session.evict == Evict::Named(Policy::Off) && args.overflow == Overflow::Evict {
        return Err(Error::usage(Setting::Evict, "off evicts nothing: give --overflow error too, or leave it out"));
    }
    let mut opened = open_with(&args.model, |model| {
        let mut params = args.model.session.params(1, model);
        (params.n_streams, params.n_draft) = (args.streams, args.drafts.speculate);
        params.kv.budget_bytes /= args.streams.max(1) as u64;
        if args.overflow == Overflow::Error {
            params.n_stream = args.ctx;
        }
        params
    })?;
    let n_slot = opened.layout.n_slot;
    let n_ctx = context(args, opened.model.config.n_ctx, n_slot)?;
    opened.params.n_log = args.lookup.max(n_slot).min(1 << 20);
    opened.replan()?;
    let template = match &args.template {
        Some(name) => Ok(ChatTemplate::named(name)?),
        None => ChatTemplate::from_gguf(&opened.model.file).map_err(|e| super::flags::spelled(&e.message())),
    };
    args.sample.params(opened.model.config.n_ctx).validate()?;
    let n_last = args.sample.params(opened.model.config.n_ctx).repeat_last_n.max(MAX_LAST_N);
    let settings = args.settings(n_ctx, n_last)?;
    let sizes = SeatSizes { n_last, held_bytes: Held::bytes(&[" ".repeat(STOP_BYTES)]) };
    let (n_vocab, plan) = (opened.model.config.n_vocab, &mut opened.plan);
    plan.private("streams", args.streams * sizes.bytes(n_vocab));
    let connection_bytes = settings.connection_bytes();
    plan.private("http", connection_bytes + NETWORK_BYTES);
    let render = |n_bytes: usize| template.as_ref().map_or(0, |template| template.plan_bytes(n_bytes));
    let request_bytes = settings.request_bytes(render);
    plan.private("requests", request_bytes);
    if settings.grammar_bytes > 0 {
        plan.private("grammar", Constraints::plan_bytes(&opened.model.file, settings.grammar_bytes)?);
    }
    if args.sessions.is_some() {
        plan_sessions(args, &mut opened)?;
    }
    opened.plan.private("page, metrics, log", 64 << 10);
    opened.check()?;
    if opened.is_only_planned() {
        return Ok(Err(opened));
    }
    opened.warn();
    warn(args, &template);
    // Rendering has a stack of its own, which it gives back.
    let stack_bytes = template.as_ref().map_or(0, |_| ChatTemplate::STACK_USED_BYTES);
    let heap_bytes = connection_bytes + request_bytes - stack_bytes;
    Ok(Ok(Ready { opened, settings, template, sizes, n_ctx, heap_bytes }))
}

/// What is taken for sessions, and what may be written: all that are kept, and one more as it takes the place of another.
fn plan_sessions(args: &ServeArgs, opened: &mut Opened) -> Result<()> {
    let Opened { model, layout, plan, .. } = opened;
    let (space_bytes, most_bytes) = (args.session_space.0, Keeper::most_bytes(layout, model));
    if layout.past.is_some() && most_bytes > space_bytes {
        let space = Bytes(space_bytes);
        let what = format!("{space} do not hold a conversation with its past: give at least {most_bytes} bytes, or lower ");
        return Err(Error::budget(Setting::SessionSpace, message![what, Setting::PastSpace]));
    }
    plan.private("sessions", Keeper::plan_bytes());
    plan.disk("sessions", space_bytes);
    plan.disk(SAVED, most_bytes);
    Ok(())
}

/// Tokens that a stream may have.
fn context(args: &ServeArgs, n_ctx_train: usize, n_slot: usize) -> Result<usize> {
    let wanted = args.ctx.unwrap_or(match args.overflow {
        Overflow::Evict => n_ctx_train,
        Overflow::Error => n_ctx_train.min(n_slot),
    });
    if wanted == 0 {
        return Err(Error::usage(Setting::Ctx, "0 tokens hold no conversation"));
    }
    if args.overflow == Overflow::Error && wanted > n_slot {
        let what = format!("{wanted} tokens do not fit into the {n_slot} slots of a stream, and --overflow error evicts none");
        return Err(Error::budget(Setting::Ctx, format!("{what}: raise --kv-budget, or give at most {n_slot}")));
    }
    Ok(wanted)
}

fn warn(args: &ServeArgs, template: &std::result::Result<ChatTemplate, String>) {
    if let Err(why) = template {
        log::warn!("chats will be refused: {why}");
    }
    let is_open =
        |host: &String| !host.ends_with(".sock") && !["localhost", "::1"].contains(&host.as_str()) && !host.starts_with("127.");
    if let Some(host) =
        args.host.iter().find(|host| is_open(host)).filter(|_| args.api_key.is_empty() && args.api_key_file.is_none())
    {
        log::warn!("whoever reaches {host} may use this server: give --api-key, or listen on 127.0.0.1 alone");
    }
    if args.stop_wait.0 > Duration::from_secs(4) {
        log::warn!("--stop-wait above 4 seconds: supervisors that wait 5 will kill the server before it has ended");
    }
}
