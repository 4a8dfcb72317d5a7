//! All integration tests: one binary, so that the package is linked once.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking, and is one crate")]

mod architecture;
mod cache;
mod endurance;
mod erasure;
mod events;
mod fidelity;
mod http;
mod keys;
mod lanes;
mod lifecycle;
#[path = "../../src/remote/tests/live.rs"]
mod live;
mod migration;
mod models;
mod operator;
mod program;
mod remote;
mod reuse;
mod search;
mod support;
mod tools;
mod upstream;
