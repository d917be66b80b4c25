//! The network's side of `lowkey serve`, with a fake engine behind it: one program for all of its tests, since each program is linked
//! for minutes on a small machine.
#![cfg(feature = "serve")]

mod api;
mod chat;
mod client;
mod fake_engine;
mod http;
