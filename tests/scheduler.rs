//! The engine thread of the server by its desk: what is generated, what need not be read again, who waits, who gives up.
#![cfg(feature = "serve")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use lowkey::kv::{KvType, Policy};
use lowkey::server::desk::{Continues, Desk, Doing, Errand, Finish, Out, Refused, Request, Ticket};
use lowkey::server::scheduler::Scheduler;
use lowkey::server::seat::SeatSizes;
use lowkey::session::{Engine, SessionParams};
use lowkey::text::{SamplerParams, Tokenizer, greedy};
use lowkey_test_kit::{demo_model, model, params, prose, session};

struct Server {
    desk: Arc<Desk>,
    tokenizer: Arc<Tokenizer>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(params: SessionParams, n_waiting: usize, n_ctx: Option<usize>) -> Server {
        let desk = Arc::new(Desk::new(params.n_streams, n_waiting));
        let tokenizer = Arc::new(Tokenizer::from_gguf(&model(&demo_model()).file).expect("a tokenizer"));
        let (own, ids) = (desk.clone(), tokenizer.clone());
        let run = move || {
            let model = model(&demo_model());
            let layout = params.layout(&model).expect("a layout");
            let engine = Engine::new(model, &layout).expect("an engine");
            let sizes = SeatSizes { n_last: 256, held_bytes: 8192 };
            Scheduler::new(engine, &layout, &sizes, own, ids, n_ctx).expect("streams").run(|| (), || false);
        };
        Server { desk, tokenizer, thread: Some(std::thread::spawn(run)) }
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, true, false).expect("ids")
    }

    fn submit(&self, request: Request) -> Ticket {
        self.desk.submit(request).expect("a place")
    }

    /// The whole answer.
    fn answer(&self, request: Request) -> (String, Vec<u32>, Out) {
        wait(&self.submit(request))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.desk.stop();
        let ended = self.thread.take().expect("a thread").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the engine thread has panicked");
    }
}

/// Fetches until the end; what lay ready last.
fn wait(ticket: &Ticket) -> (String, Vec<u32>, Out) {
    let (mut text, mut tokens, since) = (String::new(), Vec::new(), Instant::now());
    loop {
        let mut out = ticket.out();
        text.push_str(&out.text);
        out.text.clear();
        tokens.extend(out.tokens.drain(..).map(|token| token.id));
        out.tops.clear();
        if out.finish.is_some() {
            let last = Out { text: String::new(), tokens: Vec::new(), tops: Vec::new(), ..*out };
            return (text, tokens, last);
        }
        drop(out);
        assert!(since.elapsed() < Duration::from_secs(300), "no answer");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        prompt,
        continues: None,
        n_pinned: 0,
        system: None,
        sampling: SamplerParams { temp: 0.0, ..SamplerParams::default() },
        logit_bias: Vec::new(),
        stops: Vec::new(),
        max_tokens,
        ignore_eos: true,
        n_probs: 0,
        stream: None,
        session: None,
        reuse_prefix: true,
        reuse_runs: 0,
        n_draft: 16,
        grammar: None,
        shown: Vec::new(),
    }
}

fn roomy(n_streams: usize) -> SessionParams {
    SessionParams { n_streams, n_log: 4096, ..params(16 << 20) }
}

/// What `lowkey run` would say.
fn alone(prompt: &[u32], n: usize, params: &SessionParams) -> Vec<u32> {
    let mut session = session(&demo_model(), &SessionParams { n_streams: 1, ..params.clone() });
    let mut next = greedy(session.prefill(prompt, |_| true).expect("a prompt").expect("logits")).expect("a token");
    let mut tokens = vec![next];
    while tokens.len() < n {
        next = greedy(session.step(next).expect("a step")).expect("a token");
        tokens.push(next);
    }
    tokens
}

/// As a client that asks for the next thing at once, or a balancer that sends it to the idle one.
#[test]
fn who_has_the_answer_finds_the_stream_idle() {
    let server = Server::start(roomy(1), 1, None);
    let prompt = server.encode("My name is");
    for _ in 0..50 {
        let ticket = server.submit(request(prompt.clone(), 2));
        while ticket.out().finish.is_none() {
            std::thread::yield_now();
        }
        assert!(server.desk.streams(|streams| streams[0].doing == Doing::Idle));
    }
}

#[test]
fn streams_beside_each_other_say_what_each_says_alone() {
    let params = roomy(3);
    let server = Server::start(params.clone(), 4, None);
    let prompts: Vec<Vec<u32>> = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "My name is"]
        .map(|text| server.encode(text))
        .into();
    let tickets: Vec<Ticket> = prompts.iter().map(|prompt| server.submit(request(prompt.clone(), 24))).collect();
    for (ticket, prompt) in tickets.iter().zip(&prompts) {
        let (text, tokens, out) = wait(ticket);
        assert_eq!(tokens, alone(prompt, 24, &params));
        assert_eq!(text, server.tokenizer.decode(&tokens));
        assert_eq!((out.finish, out.progress.n_generated, out.progress.n_prompt), (Some(Finish::Length), 24, prompt.len()));
        assert!(out.kept.is_exact && out.kept.evicted == 0 && out.error.is_none());
    }
    let (streams, totals) = server.desk.status(|streams, totals| (streams.to_vec(), *totals));
    assert!(streams.iter().all(|stream| stream.doing == Doing::Idle));
    assert_eq!(totals.generated_tokens, 4 * 24);
    assert_eq!(totals.prompt_tokens, prompts.iter().map(Vec::len).sum::<usize>() as u64);
    assert!(totals.n_busy > totals.n_decode, "passes were shared");
}

/// Guesses change no answer, wherever it ends, alone or beside another, and none are made where a request wants none.
#[test]
fn guesses_change_no_answer() {
    for budget in [16 << 20, 1 << 20] {
        let params = SessionParams { n_draft: 8, n_log: 4096, n_streams: 2, ..params(budget) };
        let server = Server::start(params.clone(), 4, None);
        let mut prompt = server.encode("red, green, blue, red, green, blue, red, green, blue, red,");
        let (mut drafted, mut accepted) = (0, 0);
        for n in [40, 1, 2, 5, 16] {
            let (_, tokens, out) = server.answer(Request { stream: Some(0), ..request(prompt.clone(), n) });
            assert_eq!((&tokens, out.finish), (&alone(&prompt, n, &params), Some(Finish::Length)), "{budget} bytes, {n} tokens");
            (drafted, accepted) = (drafted + out.progress.draft_n, accepted + out.progress.draft_n_accepted);
            assert!(out.progress.draft_n >= out.progress.draft_n_accepted && (n < 40 || drafted > 0), "{:?}", out.progress);
            // The conversation goes on from what the stream holds.
            prompt.extend(tokens);
        }
        let totals = server.desk.status(|_, totals| *totals);
        assert_eq!((totals.draft_tokens, totals.draft_accepted), (drafted as u64, accepted as u64));
        assert!(accepted > 0 && totals.n_drafts > 0 && totals.generated_tokens == 64, "{totals:?}");
        let tickets = [0, 1].map(|stream| server.submit(Request { stream: Some(stream), ..request(prompt.clone(), 20) }));
        let (.., out) = server.answer(Request { n_draft: 0, ..request(prompt.clone(), 20) });
        assert_eq!(out.progress.draft_n, 0);
        for ticket in &tickets {
            assert_eq!(wait(ticket).1, alone(&prompt, 20, &params), "{budget} bytes");
        }
    }
}

#[test]
fn what_a_stream_holds_is_not_read_again() {
    let params = roomy(2);
    let server = Server::start(params.clone(), 4, None);
    let first = prose(120);
    let (_, tokens, out) = server.answer(request(first.clone(), 8));
    assert_eq!(out.progress.n_cached, 0);
    // The conversation goes on: only what is new is read (the last token that was generated had not been taken in).
    let longer = [&first[..], &tokens, &[5, 6, 7]].concat();
    let (_, tokens, out) = server.answer(request(longer.clone(), 8));
    assert_eq!((out.progress.n_cached, out.kept.diverged_at), (127, 127));
    assert_eq!((out.kept.stream, tokens), (0, alone(&longer, 8, &params)));
    // Another turn of the first: back to where they part.
    let other = [&first[..100], &[9, 8, 7]].concat();
    let (_, tokens, out) = server.answer(request(other.clone(), 8));
    assert_eq!((out.progress.n_cached, out.kept.diverged_at, out.kept.stream), (100, 100, 0));
    assert_eq!(tokens, alone(&other, 8, &params));
    // The same once more, token for token, and one that wants to be read anew.
    let (_, again, out) = server.answer(request(other.clone(), 8));
    assert_eq!((out.progress.n_cached, &again), (102, &tokens));
    let (_, again, out) = server.answer(Request { reuse_prefix: false, stream: Some(0), ..request(other, 8) });
    assert_eq!((out.progress.n_cached, &again), (0, &tokens));
    // Something else takes the other stream.
    let (.., out) = server.answer(request(server.encode("Hello, who are you?"), 3));
    assert_eq!((out.progress.n_cached, out.kept.stream), (0, 1));
}

/// A rewind that the policy does not forget is told, and a few tokens are not worth one.
#[test]
fn a_few_common_tokens_are_read_again_rather_than_kept_inexactly() {
    let mut params = roomy(1);
    params.kv.policy = Policy::L2Attn;
    let server = Server::start(params, 4, None);
    let first = prose(120);
    for (n, n_cached) in [(3, 0), (60, 60)] {
        let (.., out) = server.answer(request(first.clone(), 2));
        assert!(out.kept.is_exact);
        let other = [&first[..n], &server.encode("Something else is asked here.")].concat();
        let (.., out) = server.answer(request(other, 2));
        assert_eq!((out.progress.n_cached, out.kept.diverged_at, out.kept.is_exact), (n_cached, n, n_cached == 0));
    }
    // A short prompt that is asked again is, as clients of llama.cpp's server expect.
    for n_cached in [0, 7] {
        let (.., out) = server.answer(request(first[40..48].to_vec(), 2));
        assert_eq!(out.progress.n_cached, n_cached);
    }
}

#[test]
fn what_was_evicted_is_told_and_such_a_stream_goes_on_but_not_back() {
    let mut params = params(2 << 20);
    (params.n_log, params.kv.policy) = (4096, Policy::L2Attn);
    let server = Server::start(params, 4, None);
    let first = prose(300);
    let (_, tokens, out) = server.answer(request(first.clone(), 10));
    assert!(out.kept.evicted > 200 && out.kept.n_live == out.kept.n_slot && out.kept.is_exact, "{:?}", out.kept);
    let longer = [&first[..], &tokens, &[5, 6]].concat();
    assert_eq!(server.answer(request(longer.clone(), 3)).2.progress.n_cached, 309);
    let (.., out) = server.answer(request(longer[..200].to_vec(), 3));
    assert_eq!((out.progress.n_cached, out.kept.diverged_at), (0, 200));
}

/// A clock at the head of a prompt: what follows it is moved, not read; the answer is told to be inexact, and is close.
#[test]
fn a_prompt_that_changes_at_its_head_is_mended() {
    for (k_type, v_type) in [(KvType::F16, KvType::F16), (KvType::Q6H, KvType::Q4H)] {
        let mut params = roomy(1);
        (params.k_type, params.v_type) = (Some(k_type), Some(v_type));
        let server = Server::start(params.clone(), 4, None);
        let head =
            server.encode(&"Lights, doors and heaters of a house are listed here, with the state of each of them. ".repeat(5));
        let tail = prose(300);
        let asks = |clock: &str| [&head[..], &server.encode(clock), &tail].concat();
        let reuses = |prompt: Vec<u32>| Request { reuse_runs: 32, ..request(prompt, 12) };
        server.answer(reuses(asks("It is 10:41.")));
        for clock in ["It is 10:42.", "It is half past eleven in the morning.", "Noon."] {
            let prompt = asks(clock);
            let (_, tokens, out) = server.answer(reuses(prompt.clone()));
            assert!(out.kept.n_moved >= 290 && !out.kept.is_exact, "{clock}: {:?}", out.kept);
            assert_eq!((out.progress.n_prompt, out.kept.n_live), (prompt.len(), prompt.len() + 11), "{clock}");
            assert_eq!(out.progress.n_cached, prompt.len() - (out.progress.n_prompt - out.progress.n_cached));
            let exact = alone(&prompt, 12, &params);
            let n_same = tokens.iter().zip(&exact).take_while(|(a, b)| a == b).count();
            assert!(n_same >= 1, "{clock}, {k_type:?}: {n_same} tokens as read from the start: {tokens:?} {exact:?}");
            // The conversation goes on from what was mended.
            let longer = [&prompt[..], &tokens, &[5, 6]].concat();
            assert_eq!(server.answer(reuses(longer)).2.progress.n_cached, prompt.len() + 11);
        }
        // Without it everything behind the clock is read.
        assert!(server.answer(request(asks("It is 10:43."), 2)).2.kept.n_moved == 0);
    }
}

/// An answer that comes back in other tokens: a stream that has evicted goes on by its text.
#[test]
fn a_stream_that_cannot_go_back_goes_on_by_text() {
    let mut params = params(2 << 20);
    (params.n_log, params.kv.policy) = (4096, Policy::L2Attn);
    let server = Server::start(params, 4, None);
    let first = prose(300);
    let (text, tokens, out) = server.answer(request(first.clone(), 10));
    assert!(out.kept.evicted > 0);
    let said = server.desk.streams(|streams| streams[0].said);
    let whole = server.tokenizer.decode(&first) + &text;
    let last = server.tokenizer.decode(&tokens[9..]);
    assert_eq!(said.n_bytes as usize, whole.len() - last.len(), "the last token has not been taken in");
    // The answer as single bytes, as no tokenizer would write it.
    let split: Vec<u32> = text.chars().flat_map(|c| server.encode(&c.to_string())).collect();
    let rest = server.encode(&(last + " And then"));
    let n_rest = rest.len();
    let asks = Request { continues: Some(Continues { said, rest }), ..request([&first[..], &split, &[5, 6]].concat(), 3) };
    let (.., out) = server.answer(asks.clone());
    assert_eq!((out.progress.n_cached, out.progress.n_prompt), (309, 309 + n_rest));
    // What has changed since is read from its start.
    assert_eq!(server.answer(asks).2.progress.n_cached, 0);
}

#[test]
fn ends_are_told_apart() {
    let server = Server::start(roomy(1), 4, Some(64));
    let prompt = server.encode("The capital of France is");
    let plain = server.answer(request(prompt.clone(), 30)).0;
    let stop: String = plain.chars().skip(20).take(6).collect();
    let (text, _, out) = server.answer(Request { stops: vec!["zzz".into(), stop.clone()], ..request(prompt.clone(), 30) });
    assert_eq!((out.finish, out.stop), (Some(Finish::Stop), Some(1)));
    assert_eq!(text, plain[..plain.find(&stop).expect("it was said")]);
    // A text that only begins like the stop is given out at the end.
    let (text, ..) =
        server.answer(Request { stops: vec![format!("{}\u{0}", &plain[plain.len() - 3..])], ..request(prompt.clone(), 30) });
    assert_eq!(text, plain);
    let eos = server.tokenizer.eos().expect("an end");
    let (text, tokens, out) =
        server.answer(Request { ignore_eos: false, logit_bias: vec![(eos, 1e9)], ..request(prompt.clone(), 30) });
    assert_eq!((text.as_str(), tokens.len(), out.finish, out.progress.n_generated), ("", 0, Some(Finish::Eos), 1));
    // The context ends.
    let (.., out) = server.answer(request(prompt.clone(), 1000));
    assert_eq!((out.finish, out.progress.n_generated), (Some(Finish::Length), 64 - prompt.len() + 1));
    let (.., out) = server.answer(request(prompt.clone(), 0));
    assert_eq!((out.finish, out.progress.n_generated), (Some(Finish::Length), 0));
    // Nothing is left to say.
    let all = (0..server.tokenizer.n_vocab() as u32).map(|id| (id, f32::NEG_INFINITY)).collect();
    let (.., out) = server.answer(Request { logit_bias: all, ..request(prompt, 5) });
    assert!(out.finish == Some(Finish::Error) && out.error.is_some());
}

#[test]
fn probabilities_are_those_of_the_logits() {
    let params = roomy(1);
    let server = Server::start(params.clone(), 4, None);
    let prompt = server.encode("The capital of France is");
    let ticket = server.submit(Request { n_probs: 5, ..request(prompt.clone(), 4) });
    while ticket.out().finish.is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let out = ticket.out();
    assert_eq!((out.tokens.len(), out.tops.len()), (4, 20));
    let mut session = session(&demo_model(), &params);
    let mut logits = session.prefill(&prompt, |_| true).expect("a prompt").expect("logits").to_vec();
    for (token, tops) in out.tokens.iter().zip(out.tops.chunks(5)) {
        let mut expected = Vec::new();
        lowkey::text::top_logprobs(&logits, 5, &mut expected);
        assert_eq!(tops, expected.iter().map(|&(id, p)| (id, p as f32)).collect::<Vec<_>>());
        assert_eq!((token.id, token.logprob), tops[0]);
        logits = session.step(token.id).expect("a step").to_vec();
    }
}

#[test]
fn those_that_wait_have_their_turn_and_no_more_wait_than_may() {
    let server = Server::start(roomy(1), 2, None);
    let prompt = server.encode("Once upon a time");
    let long = server.submit(request(prompt.clone(), 400));
    while !long.out().is_running {
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = server.submit(request(prompt.clone(), 2));
    let given_up = server.submit(request(prompt.clone(), 2));
    match server.desk.submit(request(prompt.clone(), 2)) {
        Err(Refused::Full { retry_after_s }) => assert!((1..=60).contains(&retry_after_s)),
        other => panic!("{:?}", other.map(|_| "taken")),
    }
    assert_eq!(server.desk.n_waiting_and_running(), (2, 1));
    // Who gives up leaves its place, whether it waits or runs; what it read stays.
    drop(given_up);
    let third = server.submit(request(prompt.clone(), 2));
    drop(long);
    assert_eq!(wait(&second).1.len(), 2);
    assert_eq!(wait(&third).2.finish, Some(Finish::Length));
    assert_eq!(server.desk.n_waiting_and_running().0, 0);
}

/// While one prompt of many batches is read, another stream's tokens come between any two of them.
#[test]
fn a_long_prompt_does_not_hold_up_who_generates() {
    let server = Server::start(SessionParams { n_batch: 16, ..roomy(2) }, 4, None);
    let talker = server.submit(request(server.encode("Once upon a time"), 2000));
    let generated = || {
        let mut out = talker.out();
        out.text.clear();
        out.tokens.clear();
        out.progress.n_generated
    };
    while generated() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let reader = server.submit(request(prose(480), 1));
    let before = generated();
    while reader.out().finish.is_none() {
        generated();
        std::thread::sleep(Duration::from_millis(1));
    }
    let after = generated();
    assert!(after - before >= 28, "30 batches, {} tokens beside them", after - before);
}

#[test]
fn a_slow_reader_stops_its_own_stream_only() {
    let server = Server::start(roomy(2), 4, None);
    let prompt = server.encode("Once upon a time");
    let slow = server.submit(request(prompt.clone(), 600));
    let (_, tokens, _) = server.answer(request(server.encode("My name is"), 300));
    assert_eq!(tokens.len(), 300);
    let fetched = slow.out().tokens.len();
    assert!((200..=256).contains(&fetched), "the outbox holds 256, {fetched} lie in it");
    assert_eq!(wait(&slow).1.len(), 600);
}

#[test]
fn a_stream_is_erased_and_its_arena_is_shown() {
    let server = Server::start(roomy(1), 4, None);
    let prompt = prose(100);
    server.answer(request(prompt.clone(), 2));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let view = runtime.block_on(server.desk.arena(0, Duration::from_secs(10)));
    assert_eq!((view.stream, view.next_pos, view.n_live), (0, 101, 101));
    assert_eq!((view.policy, view.types), ("l2", ["f16", "f16"]));
    assert!(view.bytes > 0 && view.heads.len() <= 64 && view.kept.len() == view.heads.len() * 128);
    assert!(view.kept.chunks(128).all(|head| head.iter().map(|&n| usize::from(n)).sum::<usize>() == 101));
    let erase = |stream| {
        let done = server.desk.run_errand(Errand::Erase { stream }).expect("a place");
        runtime.block_on(done).expect("an answer")
    };
    assert_eq!(erase(0).expect("idle").n_tokens, 101);
    assert!(erase(7).expect_err("there is one stream").contains("no stream 7"));
    assert_eq!(server.answer(request(prompt, 2)).2.progress.n_cached, 0);
}

#[test]
fn a_server_that_stops_says_so_to_those_that_wait() {
    let server = Server::start(roomy(1), 4, None);
    let prompt = server.encode("Once upon a time");
    let running = server.submit(request(prompt.clone(), 40));
    while !running.out().is_running {
        std::thread::sleep(Duration::from_millis(1));
    }
    let waiting = server.submit(request(prompt.clone(), 40));
    server.desk.stop();
    assert_eq!(wait(&waiting).2.error, Some("the server is stopping"));
    assert_eq!(wait(&running).1.len(), 40, "what runs may end");
    assert!(matches!(server.desk.submit(request(prompt, 1)), Err(Refused::Stopping)));
}
