//! berth-bridge alone, called as any CNI runtime calls a plugin, in a network namespace that stands
//! for the host.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod addresses;
mod check_gc;
mod host;
mod keys;
mod networks;
mod ports;
mod vlan;
