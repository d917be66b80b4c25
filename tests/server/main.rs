//! `lowkey serve`: the network's side with a fake engine behind it, and the whole program. One program for all of these tests,
//! since each program is linked for minutes on a small machine.
#![cfg(feature = "serve")]

mod api;
mod chat;
mod cut;
mod fake_engine;
mod habits;
mod harmony;
mod http;
mod info;
mod kept;
mod named;
mod obey;
mod tools;
mod whole;
