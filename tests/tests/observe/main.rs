//! What the daemon says of pods and of itself: stats, events, metrics, traces, and the memory that
//! it keeps. And the benchmark.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod bench;
mod events;
mod memory;
mod metrics;
mod stats;
mod traces;
